-- PEEK: tells how a claim by a new owner would be answered, without claiming.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners  5.. one bucket each
-- ARGV     1 buckets  2.. per bucket: different fingerprints, 8 bytes each
-- Returns  {0, buckets} if the job has another shape; {1, states, lefts}: one byte per
--          recipient (g free, d released in doubt, t its owner's lease is over, h held, or
--          its outcome), 4 bytes of milliseconds per held one
-- Atomic   because a claim and its owner are two records.

local buckets = call('HGET', HEADER, 'buckets')
if buckets and buckets ~= ARGV[1] then
  return { 0, buckets }
end
local now, states, lefts = now_ms(), {}, {}
for k = 5, #KEYS do
  local packed, bucket = ARGV[k - 3], call('GET', KEYS[k])
  for i = 8, #packed, 8 do
    local at = bucket and place(bucket, sub(packed, i - 7, i))
    local state = at and sub(bucket, at + 8, at + 10)
    local answer = 'g'
    if state and state ~= RELEASED then
      answer = sub(state, 1, 1)
      if state == DOUBTED then
        answer = 'd'
      elseif byte(state) >= 128 then
        local holder = holder_of(state)
        local left = holder and struct.unpack('>I6', holder, 9) - now or 0
        answer = left > 0 and 'h' or 't'
        if left > 0 then
          lefts[#lefts + 1] = struct.pack('>I4', math.min(left, 4294967295))
        end
      end
    end
    states[#states + 1] = answer
  end
end
return { 1, table.concat(states), table.concat(lefts) }
