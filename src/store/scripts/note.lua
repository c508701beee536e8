#!lua flags=allow-oom
-- NOTE: adds an entry to the audit trail of a job, which ends with the job.
--
-- KEYS     1 the job's trail  2 its header
-- ARGV     1 most entries  2 the entry as JSON
-- Returns  nothing
-- Atomic   because the trail lives as long as the header.

local left = redis.call('PTTL', KEYS[2])
if left == -2 then
  return
end
redis.call('RPUSH', KEYS[1], ARGV[2])
redis.call('LTRIM', KEYS[1], -tonumber(ARGV[1]), -1)
if left >= 0 then
  redis.call('PEXPIRE', KEYS[1], left)
end
