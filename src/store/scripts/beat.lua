#!lua
-- BEAT: a heartbeat of a process: a write that a server refuses whenever it refuses a claim.
--
-- KEYS     1 heartbeats  2 times when the ledger was found to have gone back
-- ARGV     1 process  2 number of its last heartbeat that was answered, 0 at first
--          3 the heartbeat, as JSON
-- Returns  {number of this heartbeat, 1 if the last one was lost}
-- Atomic   because a loss must be noted before the next heartbeat hides it.
--
-- A heartbeat that is carried out late, by a server that was frozen, never lowers the number.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stood = redis.call('HGET', KEYS[1], ARGV[1])
local number, before = tonumber(stood and string.match(stood, '^%d+') or 0), tonumber(ARGV[2])
local back = before > number
if back then
  redis.call('RPUSH', KEYS[2], string.format('%.0f', now))
  redis.call('LTRIM', KEYS[2], -100, -1)
end
if before == 0 then
  -- A process that starts removes those that ended long ago.
  local all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    if tonumber(string.match(all[i + 1], '^%d+ (%d+)')) < now - 86400000 then
      redis.call('HDEL', KEYS[1], all[i])
    end
  end
end
number = math.max(number, before) + 1
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %.0f %s', number, now, ARGV[3]))
return { number, back and 1 or 0 }
