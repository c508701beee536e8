-- ENTER: notes a job that is durable with the broker and that no worker has registered yet.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     1 app  2 client_msg_no  3 target  4 content digest  5 list entries  6 now in ms
--          7 not before in ms or ''  8 priority  9 expires at in ms or ''  10 tags as JSON or ''
--          11 the version of a list that was fetched, as JSON or ''
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
for i, field in pairs({ [9] = 'expires_at_ms', [10] = 'tags', [11] = 'fetched' }) do
  if ARGV[i] ~= '' then
    call('HSET', HEADER, field, ARGV[i])
  end
end
return 1
