#!lua
-- LEASE: books recipients on up to three limits together, or on none.
--
-- KEYS     one limiter each: its theoretical arrival time (TAT) in microseconds
-- ARGV     1 recipients wanted  2 recipients per call  3 longest wait in us
--          then per limiter: interval in us, burst, 'call' or 'recipient'
-- Returns  {recipients, wait in us, index of the limit that decided or 0, now in us}; with 0
--          recipients nothing was booked, and the caller may ask again after the wait
-- Atomic   because what one limit grants is booked on all of them.
--
-- The same arithmetic as domain::limits::Tat, step by step; a differential test keeps them equal.

local call, ceil, floor, max, min = redis.call, math.ceil, math.floor, math.max, math.min
local wanted, per_call, wait_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = call('TIME')
local now = time[1] * 1000000 + time[2]

local function units_of(limit, recipients)
  if limit.per_call then
    return ceil(recipients / per_call)
  end
  return recipients
end

local limits = {}
local granted, binding = wanted, 0
local later, refuser = -1, 0
for i = 1, #KEYS do
  local interval, burst = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  local limit = { interval = interval, per_call = ARGV[3 * i + 3] == 'call', tolerance = burst * interval }
  limits[i] = limit
  local want = units_of(limit, wanted)
  local tat = tonumber(call('GET', KEYS[i]) or '0')
  -- An idle limiter starts from now. A TAT far in the future comes from another clock.
  local ahead_max = wait_max + max(burst, 1) * interval + want * interval
  if tat < now then
    tat = now
  elseif tat > now + max(ahead_max, 60000000) then
    tat = now + burst * interval
  end
  limit.tat = tat
  local first = max(tat + interval - limit.tolerance - now, 0)
  if first > wait_max then
    if first - wait_max > later then
      later, refuser = first - wait_max, i
    end
  else
    local fitting = floor((now + wait_max + limit.tolerance - tat) / interval)
    local units = max(min(fitting, want), 1)
    local recipients = units
    if limit.per_call then
      recipients = units * per_call
    end
    if recipients < granted then
      granted, binding = recipients, i
    end
  end
end
if refuser > 0 then
  return { 0, ceil(later), refuser, now }
end

local wait, slowest = 0, 0
for i = 1, #KEYS do
  local limit = limits[i]
  local tat = limit.tat + units_of(limit, granted) * limit.interval
  local after = max(tat - limit.tolerance - now, 0)
  if after > wait then
    wait, slowest = after, i
  end
  -- Once the TAT has passed, the key has no meaning; the extra second covers the rounding. 17
  -- digits restore a double exactly.
  call('SET', KEYS[i], string.format('%.17g', tat), 'PX', ceil((tat - now) / 1000) + 1000)
end
if binding == 0 then
  binding = slowest
end
return { granted, ceil(wait), binding, now }
