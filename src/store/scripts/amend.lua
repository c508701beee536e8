#!lua flags=allow-oom
-- AMEND: notes a changed value in the header of a job.
--
-- KEYS     1 header
-- ARGV     1 field  2 value
-- Returns  nothing
-- Atomic   because a job that does not exist must not begin here.

if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
