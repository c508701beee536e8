-- COMPLETE: marks a finished job completed, once.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     1 window in s
-- Returns  1 if this call did it, else 0 (done before, not finished, or not known)
-- Atomic   because the job may be extended between the look and the mark.

-- A job of at most so many recipients, and with at most so many slices and submissions, keeps them in
-- its header: two keys less, which is a third of what such a job takes. Each has a field of its own,
-- because one long value would cost more than the keys: Redis stores a hash with a value above 64
-- bytes in another way.
local SMALL, FOLDED_MAX = 100, 8

local function fold()
  local fields = { 'folded', 1 }
  for start, key in pairs(FOLDED) do
    local kept = call('HGETALL', key)
    for i = 1, #kept, 2 do
      fields[#fields + 1] = start .. kept[i]
      fields[#fields + 1] = kept[i + 1]
    end
  end
  if #fields > 2 and #fields <= 2 * FOLDED_MAX + 2 then
    call('HSET', HEADER, unpack(fields))
    -- In one command: a cluster refuses both or none, while their slot moves.
    call('DEL', SLICES, SUBMISSIONS)
  end
end

-- A bucket that grew by appending takes up to twice its size. Written at once it takes its size.
local function fit()
  local bucket = HEADER .. ':0'
  local records = call('GET', bucket)
  if records then
    call('SET', bucket, records)
  end
end

local now = standing()
if now[8] == 0 or now[9] == 1 then
  return 0
end
-- No recipient is pending, so none is claimed.
call('DEL', OWNERS)
if now[1] <= SMALL then
  fold()
  fit()
end
-- The mark comes last: a cluster may refuse a key in the middle, while its slot moves.
all_keys('EXPIRE', ARGV[1])
call('HDEL', HEADER, 'held')
call('HSET', HEADER, 'completed_at_ms', digits(now_ms()))
return 1
