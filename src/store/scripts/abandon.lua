-- ABANDON: ends a job without any activity for long and with nothing left to deliver. Recipients
-- whose outcome the ledger does not know count as uncertain, in `lost`: it has no names for them.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     1 how long there must have been no activity, in ms  2 1 if the ledger went back to older
--          data while the job ran
-- Returns  the progress, or an empty array if the job is completed, not known, or not that quiet
-- Atomic   because a worker may start to work on it.

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
-- The value under a number is the owner and the end of its lease; the value under an owner is its
-- number.
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
if ARGV[2] == '1' then
  -- Some of them may have been sent to.
  call('HSET', HEADER, 'unsure', 1)
end
-- No worker is expanding its submissions either: those that were published are gone, and the others
-- will not be published.
local needed = tonumber(row[7] or 0)
if not row[8] then
  needed = math.max(needed, tonumber(row[6] or 0))
end
call('HSET', HEADER, 'expanded', digits(needed), 'progress_at_ms', digits(now))
return standing()
