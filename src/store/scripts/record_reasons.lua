-- RECORD_REASONS: keeps why recipients ended as they did, for the first ones of a job.
--
-- KEYS     1 reasons of the job  2 its header
-- ARGV     1 most reasons  2 window in s  3 fingerprint  4 reason as JSON  5 fingerprint ...
-- Returns  nothing
-- Atomic   because the number of reasons is read and raised together.

local room = tonumber(ARGV[1]) - redis.call('HLEN', KEYS[1])
for at = 3, #ARGV, 2 do
  if room <= 0 then
    break
  end
  room = room - redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
end
-- The keys of a running job do not expire.
if redis.call('HEXISTS', KEYS[2], 'held') == 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
end
