-- ENTER: notes a job that is durable with the broker and that no worker has registered yet.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     1 app  2 client_msg_no  3 target  4 content digest  5 list entries  6 now in ms
--          7 not before in ms or ''  8 priority
-- Returns  1 if it was noted, 0 if the job was known
-- Atomic   because a worker may register it at the same time.
--
-- A header without buckets is such a note.

if call('EXISTS', HEADER) == 1 then
  return 0
end
call('HSET', HEADER, 'app', ARGV[1], 'client_msg_no', ARGV[2], 'target', ARGV[3],
  'digest', ARGV[4], 'awaited', ARGV[5], 'accepted_at_ms', ARGV[6], 'priority', ARGV[8])
if ARGV[7] ~= '' then
  call('HSET', HEADER, 'not_before_ms', ARGV[7])
end
return 1
