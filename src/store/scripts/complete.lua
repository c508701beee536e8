-- COMPLETE: marks a finished job completed, once.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     1 window in s
-- Returns  1 if this call did it, else 0 (done before, not finished, or not known)
-- Atomic   because the job may be extended between the look and the mark.

local now = standing()
if now[8] == 0 or now[9] == 1 then
  return 0
end
-- No recipient is pending, so none is claimed.
call('DEL', OWNERS)
-- The mark comes last: a cluster may refuse a key in the middle, while its slot moves.
all_keys('EXPIRE', ARGV[1])
call('HDEL', HEADER, 'held')
call('HSET', HEADER, 'completed_at_ms', digits(now_ms()))
return 1
