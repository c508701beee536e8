-- SETTLE: records outcomes, releases claims and counts.
--
-- KEYS     1 header  2 slices  3 submissions  4.. one bucket each
-- ARGV     1 slice  2 entries  3 submission  4 buckets  5 partitions  6 app  7 client_msg_no
--          8 target  9 accepted_at in ms  10 ttl in s  11 owner, 8 bytes  12 1 if the slice ends here
--          13.. per bucket: fingerprints, 8 bytes each; then one byte each, the outcome or r for release
-- Returns  {0, buckets, partitions} if the job has another shape; {1, rebuilt, total, sent,
--          duplicate, failed, uncertain, expired, cancelled, finished, completed}
-- Atomic   because a counter rises exactly when a recipient gets its first outcome.
--
-- An outcome that stands is never changed. One that comes late beats a claim, whoever holds it: what
-- was sent was sent.

local NAMES = { s = 'sent', f = 'failed', u = 'uncertain', e = 'expired', x = 'cancelled' }

local entries, ttl, owner = tonumber(ARGV[2]), ARGV[10], ARGV[11]
local counted, rebuilt = locate({
  id = ARGV[1], entries = entries, submission = ARGV[3], buckets = ARGV[4],
  partitions = ARGV[5], app = ARGV[6], client_msg_no = ARGV[7], target = ARGV[8],
  accepted_at_ms = ARGV[9],
}, ttl)
if not counted then
  return { 0, rebuilt[1], rebuilt[2] }
end

local tally, settled = {}, 0
local fields, writes = {}, {}
for k = 4, #KEYS do
  local bucket, packed, codes = KEYS[k], ARGV[2 * k + 5], ARGV[2 * k + 6]
  local count = #codes
  for i = 1, count do
    fields[i] = sub(packed, i * 8 - 7, i * 8)
  end
  local held = call('HMGET', bucket, unpack(fields, 1, count))
  local last, unclaimed, released = 0, false, {}
  for i = 1, count do
    local state, code = held[i], sub(codes, i, i)
    if code == 'r' then
      if state and #state > 1 and sub(state, 2, 9) == owner then
        released[#released + 1] = fields[i]
      end
    elseif not state or #state > 1 then
      unclaimed = unclaimed or not state
      writes[last + 1] = fields[i]
      writes[last + 2] = code
      last = last + 2
      tally[code] = (tally[code] or 0) + 1
    end
  end
  if last > 0 then
    settled = settled + last / 2
    call('HSET', bucket, unpack(writes, 1, last))
    -- A claim has set the bucket's expiry; without one the bucket may be new.
    if unclaimed then
      call('EXPIRE', bucket, ttl)
    end
  end
  if #released > 0 then
    call('HDEL', bucket, unpack(released))
  end
end

-- The entries of the slice that got no outcome of their own are repeats of others.
local duplicate, after = 0, counted + settled
if ARGV[12] == '1' and after < entries then
  duplicate, after = entries - after, entries
elseif after > entries then
  -- The slice was called done too early: what was put down as a repeat was none.
  duplicate, after = entries - after, entries
end
if settled > 0 or duplicate ~= 0 then
  for code, count in pairs(tally) do
    call('HINCRBY', HEADER, NAMES[code], count)
  end
  if duplicate ~= 0 then
    call('HINCRBY', HEADER, 'duplicate', duplicate)
  end
  call('HSET', HEADER, 'progress_at_ms', digits(now_ms()))
  call('HSET', SLICES, ARGV[1], after)
  keep(ttl)
end
return { 1, rebuilt, unpack(standing()) }
