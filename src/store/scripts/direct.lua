#!lua
-- DIRECT: puts directives in force or lifts them, and removes those that have expired.
--
-- KEYS     1 the directives
-- ARGV     per directive: field, end in ms since 1970 or 0 for none, the directive as JSON or
--          nothing to lift it
-- Returns  how many of these fields there were
-- Atomic   because workers take over all directives of a version together.
--
-- The version is the server's time, so that it never repeats, even if all keys were lost in between.

local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])

local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local till = all[i] ~= 'version' and tonumber(string.match(all[i + 1], '^%d+')) or 0
  if till > 0 and till * 1000 <= now_us then
    redis.call('HDEL', KEYS[1], all[i])
  end
end

local stood = 0
for i = 1, #ARGV, 3 do
  stood = stood + redis.call('HEXISTS', KEYS[1], ARGV[i])
  if ARGV[i + 2] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2])
  end
end
local version = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', math.max(version + 1, now_us)))
return stood
