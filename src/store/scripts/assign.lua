-- ASSIGN: keeps the sub-lane that was chosen for a job.
--
-- KEYS     1 sub-lanes of the open jobs of a target and priority
-- ARGV     1 job  2 sub-lane  3 version of the hash from which it was chosen, or ''
--          4.. jobs that are no longer open
-- Returns  1, or 0 if the hash has changed since
-- Atomic   because two workers that assign jobs at once must not choose the same sub-lane.

if (redis.call('HGET', KEYS[1], 'version') or '') ~= ARGV[3] then
  return 0
end
for i = 4, #ARGV do
  redis.call('HDEL', KEYS[1], ARGV[i])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HINCRBY', KEYS[1], 'version', 1)
return 1
