-- CHARGE: counts the lists of some jobs that were not counted before, or none of them.
--
-- KEYS     1 quota of the app today  2 yesterday
-- ARGV     1 most entries of a job, or -1  2 most of a day, or -1; then for each list its job,
--          submission and entries
-- Returns  {1, '', 0, 0} if all are counted now, else {0, job, entries of that job before, entries of
--          the day before}: the first job that is too much by itself, else the first
-- Atomic   because gateways and workers count at once, and each list counts once.

local job_most, day_most = tonumber(ARGV[1]), tonumber(ARGV[2])

local new, is_new, jobs, more, all = {}, {}, {}, {}, 0
for i = 3, #ARGV, 3 do
  local job, entries = ARGV[i], tonumber(ARGV[i + 2])
  local list = 's' .. job .. '/' .. ARGV[i + 1]
  local known = redis.call('HEXISTS', KEYS[1], list) + redis.call('HEXISTS', KEYS[2], list)
  if known == 0 and not is_new[list] then
    is_new[list] = true
    new[#new + 1] = list
    if not more[job] then
      more[job] = 0
      jobs[#jobs + 1] = job
    end
    more[job] = more[job] + entries
    all = all + entries
  end
end
if #new == 0 then
  return { 1, '', 0, 0 }
end

local day = tonumber(redis.call('HGET', KEYS[1], 'used') or 0)
local function before(job)
  return tonumber(redis.call('HGET', KEYS[1], 'j' .. job) or 0)
    + tonumber(redis.call('HGET', KEYS[2], 'j' .. job) or 0)
end
if job_most >= 0 then
  for _, job in ipairs(jobs) do
    if before(job) + more[job] > job_most then
      return { 0, job, before(job), day }
    end
  end
end
if day_most >= 0 and day + all > day_most then
  return { 0, jobs[1], before(jobs[1]), day }
end

for _, list in ipairs(new) do
  redis.call('HSET', KEYS[1], list, '')
end
for _, job in ipairs(jobs) do
  redis.call('HINCRBY', KEYS[1], 'j' .. job, more[job])
end
redis.call('HINCRBY', KEYS[1], 'used', all)
redis.call('EXPIRE', KEYS[1], 172800)
return { 1, '', 0, 0 }
