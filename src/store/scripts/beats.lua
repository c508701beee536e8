#!lua flags=no-writes
-- BEATS: all heartbeats, with the time of the server that keeps them.
--
-- KEYS     1 heartbeats
-- Returns  {now in ms, {process, heartbeat, ...}}
-- Atomic   because in a cluster two commands may reach two servers with different clocks.

local time = redis.call('TIME')
return { time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[1]) }
