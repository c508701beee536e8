-- CLAIM: claims a window of the recipients of one slice for one owner.
--
-- KEYS     1 header  2 slices  3 submissions  4.. one bucket each
-- ARGV     1 slice  2 entries  3 submission  4 buckets  5 partitions  6 app  7 client_msg_no
--          8 target  9 accepted_at in ms  10 ttl in s  11 owner, 8 bytes  12 lease in ms
--          13.. per bucket: fingerprints, 8 bytes each
-- Returns  {0, buckets, partitions} if the job has another shape; {1} if the slice is done;
--          {2, states, lefts, rebuilt}: one byte per recipient (g granted, t taken over, h held, or
--          its outcome), 4 bytes of milliseconds per held one, 1 if the total grew by the slice
-- Atomic   because between reading "nobody has it" and writing "it is mine" nobody may do the same.
--
-- A claim is 'c', 8 bytes of owner, 6 bytes of deadline; an outcome is a single byte. One HMGET and
-- one HSET per bucket: a look-up in a listpack is linear, and a call costs as much as several.

local ttl, owner = ARGV[10], ARGV[11]
local counted, rebuilt = locate({
  id = ARGV[1], entries = tonumber(ARGV[2]), submission = ARGV[3], buckets = ARGV[4],
  partitions = ARGV[5], app = ARGV[6], client_msg_no = ARGV[7], target = ARGV[8],
  accepted_at_ms = ARGV[9],
}, ttl)
if not counted then
  return { 0, rebuilt[1], rebuilt[2] }
end
if counted >= tonumber(ARGV[2]) then
  return { 1 }
end

local now = now_ms()
local mine = 'c' .. owner .. struct.pack('>I6', now + ARGV[12])
local states, lefts, fields, writes = {}, {}, {}, {}
local done, granted = 0, 0
for k = 4, #KEYS do
  local bucket, packed = KEYS[k], ARGV[k + 9]
  local count = #packed / 8
  for i = 1, count do
    fields[i] = sub(packed, i * 8 - 7, i * 8)
  end
  local held = call('HMGET', bucket, unpack(fields, 1, count))
  local last = 0
  for i = 1, count do
    local state, answer = held[i], 'g'
    if state then
      if #state == 1 then
        answer = state
      elseif sub(state, 2, 9) ~= owner then
        local left = struct.unpack('>I6', state, 10) - now
        if left > 0 then
          answer = 'h'
          lefts[#lefts + 1] = struct.pack('>I4', math.min(left, 4294967295))
        else
          answer = 't'
        end
      end
    end
    if answer == 'g' or answer == 't' then
      writes[last + 1] = fields[i]
      writes[last + 2] = mine
      last = last + 2
    end
    states[done + i] = answer
  end
  done = done + count
  if last > 0 then
    granted = granted + last
    call('HSET', bucket, unpack(writes, 1, last))
    call('EXPIRE', bucket, ttl)
  end
end
if granted > 0 then
  keep(ttl)
end
return { 2, table.concat(states), table.concat(lefts), rebuilt }
