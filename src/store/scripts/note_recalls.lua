-- NOTE_RECALLS: notes what became of the recalls of messages.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners  5.. one bucket each
-- ARGV     1 buckets  2.. per bucket: fingerprints, 8 bytes each; then a state each, 1 byte
-- Returns  {0, buckets} if the job has another shape; {1}
-- Atomic   because a record must not move between its search and its change.

local buckets = call('HGET', HEADER, 'buckets')
if buckets and buckets ~= ARGV[1] then
  return { 0, buckets }
end
for k = 5, #KEYS do
  local key, packed, states = ids_beside(KEYS[k]), ARGV[2 * k - 8], ARGV[2 * k - 7]
  local noted = {}
  for i = 1, #states do
    noted[sub(packed, i * 8 - 7, i * 8)] = sub(states, i, i)
  end
  each_id(call('GET', key) or '', function(fingerprint, at)
    if noted[fingerprint] then
      call('SETRANGE', key, at + ID_HEAD - 1, noted[fingerprint])
    end
  end)
end
return { 1 }
