-- GATHER: notes that a part of a list is accepted, and says whether all parts are.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     1 list  2 number of the part  3 parts  4 1 to give the list up unless it is complete
-- Returns  0 some parts are missing, 1 all have arrived or the ledger has lost the job, 2 given up
-- Atomic   because a part that comes late either is the last one or finds the list given up.
--
-- The notes are among the submissions, under names that no submission has.

local row = call('HMGET', HEADER, 'buckets', 'rebuilt', 'submissions', 'folded')
unfold(row[4])
if not row[1] or row[2] then
  return 1
end
local list = 'list 0 ' .. ARGV[1]
local there = call('HGET', SUBMISSIONS, list)
if there == 'x' then
  return 2
end
there = tonumber(there or 0)
if call('HSETNX', SUBMISSIONS, 'list ' .. ARGV[2] .. ' ' .. ARGV[1], 1) == 1 then
  there = call('HINCRBY', SUBMISSIONS, list, 1)
end
if there >= tonumber(ARGV[3]) then
  return 1
end
if ARGV[4] == '0' then
  return 0
end
call('HSET', SUBMISSIONS, list, 'x')
call('HSET', HEADER, 'parts', row[3])
return 2
