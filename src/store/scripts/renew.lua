-- RENEW: extends the lease of an owner, if it still holds some of these claims.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners  5.. one bucket each
-- ARGV     1 buckets  2 owner, 8 bytes  3 lease in ms
--          4.. per bucket: different fingerprints, 8 bytes each
-- Returns  {0, buckets} if the job has another shape; {1, 1} if all were still held,
--          {1, 0} if some were not
-- Atomic   because a claim may be taken over between the check and the new end of the lease.

local buckets = call('HGET', HEADER, 'buckets')
if buckets and buckets ~= ARGV[1] then
  return { 0, buckets }
end
local owner = ARGV[2]
local mine = call('HGET', OWNERS, owner)
local in_doubt = mine and doubtful(mine)
local all, some = 1, false
for k = 5, #KEYS do
  local packed = ARGV[k - 1]
  local bucket = mine and call('GET', KEYS[k]) or ''
  for i = 8, #packed, 8 do
    local at = place(bucket, sub(packed, i - 7, i))
    local state = at and sub(bucket, at + 8, at + 10)
    if at and (state == mine or state == in_doubt) then
      some = true
    else
      all = 0
    end
  end
end
if some then
  call('HSET', OWNERS, mine, owner .. struct.pack('>I6', now_ms() + ARGV[3]))
end
return { 1, all }
