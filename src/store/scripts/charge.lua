-- CHARGE: counts the lists of a job that were not counted before, or none of them.
--
-- KEYS     1 quota of the app today  2 yesterday
-- ARGV     1 job  2 most entries of a job, or -1  3 most of a day, or -1; then for each list
--          submission and entries
-- Returns  {1 if all are counted now, else 0; entries of the job before; entries of the day before}
-- Atomic   because gateways and workers count at once, and each list counts once.

local job = ARGV[1]
local before = tonumber(redis.call('HGET', KEYS[1], 'j' .. job) or 0)
  + tonumber(redis.call('HGET', KEYS[2], 'j' .. job) or 0)
local day = tonumber(redis.call('HGET', KEYS[1], 'used') or 0)
local job_most, day_most = tonumber(ARGV[2]), tonumber(ARGV[3])

local more, new = 0, {}
for i = 4, #ARGV, 2 do
  local list = 's' .. job .. '/' .. ARGV[i]
  local known = redis.call('HEXISTS', KEYS[1], list) + redis.call('HEXISTS', KEYS[2], list)
  if known == 0 then
    more = more + tonumber(ARGV[i + 1])
    new[#new + 1] = list
  end
end
if #new == 0 then
  return { 1, before, day }
end
if (job_most >= 0 and before + more > job_most) or (day_most >= 0 and day + more > day_most) then
  return { 0, before, day }
end

for _, list in ipairs(new) do
  redis.call('HSET', KEYS[1], list, '')
end
redis.call('HINCRBY', KEYS[1], 'j' .. job, more)
redis.call('HINCRBY', KEYS[1], 'used', more)
redis.call('EXPIRE', KEYS[1], 172800)
return { 1, before, day }
