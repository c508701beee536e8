-- KNOWS: what is recorded of submissions.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     the submissions
-- Returns  the record of each, or nil
-- Atomic   because complete.lua moves the records to another key.

unfold(call('HGET', HEADER, 'folded'))
local records = {}
for i, submission in ipairs(ARGV) do
  records[i] = call('HGET', SUBMISSIONS, submission)
end
return records
