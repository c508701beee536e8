-- RESOLVE: changes the outcome of recipients from uncertain to another one.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners  5.. one bucket each
-- ARGV     1 buckets  2 code of the new outcome  3 name of its counter
--          4.. per bucket: different fingerprints, 8 bytes each
-- Returns  {0, buckets} if the job has another shape; {1, flags}: one byte per recipient, 1 if it
--          was changed
-- Atomic   because a counter changes exactly when a recipient does.

local buckets = call('HGET', HEADER, 'buckets')
if buckets and buckets ~= ARGV[1] then
  return { 0, buckets }
end
local flags, changed = {}, 0
for k = 5, #KEYS do
  local packed, bucket = ARGV[k - 1], call('GET', KEYS[k])
  local write, flush = writer(KEYS[k])
  for i = 8, #packed, 8 do
    local fingerprint = sub(packed, i - 7, i)
    local at = bucket and place(bucket, fingerprint)
    local uncertain = at and sub(bucket, at + 8, at + 10) == 'u\0\0'
    if uncertain then
      write(at, fingerprint .. ARGV[2] .. '\0\0')
      changed = changed + 1
    end
    flags[#flags + 1] = uncertain and '1' or '0'
  end
  flush()
end
if changed > 0 then
  call('HINCRBY', HEADER, 'uncertain', -changed)
  call('HINCRBY', HEADER, ARGV[3], changed)
end
return { 1, table.concat(flags) }
