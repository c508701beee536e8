-- RENEW: lengthens the claims an owner still holds.
--
-- KEYS     1 header  2 slices  3 submissions  4.. one bucket each
-- ARGV     1 buckets  2 owner, 8 bytes  3 lease in ms  4.. per bucket: fingerprints, 8 bytes each
-- Returns  {0, buckets, partitions} if the job has another shape; {1, 1} if all were still held,
--          {1, 0} if some were not
-- Atomic   because a claim that somebody took over in between must not be taken back.

local shape = call('HMGET', HEADER, 'buckets', 'partitions')
if shape[1] and shape[1] ~= ARGV[1] then
  return { 0, shape[1], shape[2] }
end
local owner, all = ARGV[2], 1
local mine = 'c' .. owner .. struct.pack('>I6', now_ms() + ARGV[3])
local fields, writes = {}, {}
for k = 4, #KEYS do
  local bucket, packed = KEYS[k], ARGV[k]
  local count = #packed / 8
  for i = 1, count do
    fields[i] = sub(packed, i * 8 - 7, i * 8)
  end
  local held = call('HMGET', bucket, unpack(fields, 1, count))
  local last = 0
  for i = 1, count do
    local state = held[i]
    if state and #state > 1 and sub(state, 2, 9) == owner then
      writes[last + 1] = fields[i]
      writes[last + 2] = mine
      last = last + 2
    else
      all = 0
    end
  end
  if last > 0 then
    call('HSET', bucket, unpack(writes, 1, last))
  end
end
return { 1, all }
