-- ABANDON: ends a job of which nothing was heard for long and nothing is left to deliver. Recipients
-- whose outcome the ledger does not know count as uncertain, in `lost`: it has no names for them.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     1 how long nothing must have been heard, in ms
-- Returns  the standing, or an empty array if the job is completed, not known, or not that quiet
-- Atomic   because somebody may begin to work on it.

local row = call('HMGET', HEADER, 'buckets', 'completed_at_ms', 'accepted_at_ms', 'progress_at_ms',
  'alive_at_ms', 'parts', 'submissions', 'rebuilt')
if not row[1] or row[2] then
  return {}
end
local now, heard = now_ms(), 0
for i = 3, 5 do
  heard = math.max(heard, tonumber(row[i] or 0))
end
if now - heard < tonumber(ARGV[1]) then
  return {}
end
-- Of a number, its owner and the end of its lease; of an owner, its number.
for _, value in ipairs(call('HVALS', OWNERS)) do
  if #value == 14 and struct.unpack('>I6', value, 9) > now then
    return {}
  end
end
local stands = standing()
local pending = stands[1] - settled_of(stands)
if pending > 0 then
  call('HINCRBY', HEADER, 'lost', pending)
end
-- Nobody is at its submissions either: what was published is gone, what was not will not be.
local needed = tonumber(row[7] or 0)
if not row[8] then
  needed = math.max(needed, tonumber(row[6] or 0))
end
call('HSET', HEADER, 'expanded', digits(needed), 'progress_at_ms', digits(now))
return standing()
