-- PUT_TEMPLATE: stores a new version of a message.
--
-- KEYS     1 names of the app  2 versions of the name
-- ARGV     1 name  2 message as JSON  3 window in ms
-- Returns  {version, time in ms}
-- Atomic   because two versions may be put at once: each gets its own number, and the higher one is
--          the newest. The clock is the server's.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local version = math.abs(tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0)) + 1
redis.call('HSET', KEYS[1], ARGV[1], version)

-- A version is superseded when the next one is put.
local superseded = now
for old = version - 1, 1, -1 do
  local kept = redis.call('HGET', KEYS[2], old)
  if not kept then
    break
  elseif superseded + tonumber(ARGV[3]) < now then
    redis.call('HDEL', KEYS[2], old)
  end
  superseded = tonumber(string.match(kept, '^%d+'))
end

redis.call('HSET', KEYS[2], version, string.format('%.0f %s', now, ARGV[2]))
redis.call('PERSIST', KEYS[2])
return { version, now }
