#!lua
-- LEASE: books units of a limit.
--
-- KEYS     1 the limiter: its theoretical arrival time (TAT) in microseconds
-- ARGV     1 units wanted  2 longest wait in us  3 interval in us  4 burst  5 how much further ahead
--          dearer messages may bring the limiter, in us
-- Returns  {units, wait in us, now in us}; with 0 units nothing was booked, and the caller may ask
--          again after the wait
-- Atomic   because a lease may be booked between reading a TAT and writing it.
--
-- The same arithmetic as domain::limits::Tat, step by step; a differential test keeps them equal.

local call, ceil, floor, max, min = redis.call, math.ceil, math.floor, math.max, math.min
local wanted, wait_max = tonumber(ARGV[1]), tonumber(ARGV[2])
local interval, burst = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = call('TIME')
local now = time[1] * 1000000 + time[2]
local tolerance = burst * interval

local tat = tonumber(call('GET', KEYS[1]) or '0')
-- An idle limiter starts from now. A TAT far in the future comes from another clock.
local ahead_max = wait_max + max(burst, 1) * interval + wanted * interval + tonumber(ARGV[5])
if tat < now then
  tat = now
elseif tat > now + max(ahead_max, 60000000) then
  tat = now + burst * interval
end
local first = max(tat + interval - tolerance - now, 0)
if first > wait_max then
  return { 0, ceil(first - wait_max), now }
end
local units = max(min(floor((now + wait_max + tolerance - tat) / interval), wanted), 1)
tat = tat + units * interval
-- Once the TAT has passed, the key has no meaning; the extra second covers the rounding. 17
-- digits restore a double exactly.
call('SET', KEYS[1], string.format('%.17g', tat), 'PX', ceil((tat - now) / 1000) + 1000)
return { units, ceil(max(tat - tolerance - now, 0)), now }
