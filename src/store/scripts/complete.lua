-- COMPLETE: marks a finished job completed, once.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     1 window in s
-- Returns  1 if this call did it, else 0 (done before, not finished, or not known)
-- Atomic   because the job may be extended between the look and the mark.

-- A job of at most so many recipients, and with at most so many slices and submissions, keeps them in
-- one field of its header, as JSON: two keys less, which is a third of what such a job takes.
local FOLDED_RECIPIENTS, FOLDED = 100, 8

local function fold()
  local slices, submissions = call('HGETALL', SLICES), call('HGETALL', SUBMISSIONS)
  if #slices == 0 or #slices + #submissions > 2 * FOLDED then
    return
  end
  call('HSET', HEADER, 'lists', cjson.encode({ slices, submissions }))
  -- In one command: a cluster refuses both or none, while their slot moves.
  call('DEL', SLICES, SUBMISSIONS)
end

local now = standing()
if now[8] == 0 or now[9] == 1 then
  return 0
end
-- No recipient is pending, so none is claimed.
call('DEL', OWNERS)
if now[1] <= FOLDED_RECIPIENTS then
  fold()
end
-- The mark comes last: a cluster may refuse a key in the middle, while its slot moves.
all_keys('EXPIRE', ARGV[1])
call('HDEL', HEADER, 'held')
call('HSET', HEADER, 'completed_at_ms', digits(now_ms()))
return 1
