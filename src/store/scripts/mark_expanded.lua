-- MARK_EXPANDED: records, once, that all slices of a submission are published.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     1 submission
-- Returns  the progress, or an empty array if the ledger has lost the job
-- Atomic   because the flag and its counter change together.

local row = call('HMGET', HEADER, 'app', 'folded')
if not row[1] then
  return {}
end
unfold(row[2])
local submission = call('HGET', SUBMISSIONS, ARGV[1])
if submission and sub(submission, -2) == ':0' then
  call('HSET', SUBMISSIONS, ARGV[1], sub(submission, 1, -2) .. '1')
  call('HINCRBY', HEADER, 'expanded', 1)
end
return standing()
