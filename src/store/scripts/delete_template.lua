-- DELETE_TEMPLATE: hides a name from new jobs; its versions stay for those that started with them.
--
-- KEYS     1 names of the app  2 versions of the name
-- ARGV     1 name  2 window in s
-- Returns  1 if there was such a name, else 0
-- Atomic   because a version may be put at the same time: it is either deleted too or stays.

local version = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0)
if version <= 0 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], -version)
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
