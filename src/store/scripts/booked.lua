#!lua flags=no-writes
-- BOOKED: the state of limiters, with the time of the server that keeps them.
--
-- KEYS     limiters
-- Returns  {now in us, state or false, ...}
-- Atomic   because in a cluster two commands may reach two servers with different clocks.

local time = redis.call('TIME')
local reply = { string.format('%.0f', time[1] * 1000000 + time[2]) }
for i = 1, #KEYS do
  reply[i + 1] = redis.call('GET', KEYS[i])
end
return reply
