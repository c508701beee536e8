-- SETTLE: records outcomes, releases claims and counts.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners  5.. one bucket each
-- ARGV     1 slice  2 entries  3 submission  4 buckets  5 app  6 client_msg_no  7 target
--          8 accepted_at in ms  9 window in s  10 owner, 8 bytes  11 if the slice ends here, how many
--          repeats its deliveries saw; else nothing
--          12.. per bucket: different fingerprints, 8 bytes each; then a code each, r for release,
--          d for release in doubt, k to release a claim and to keep a doubt that it was given with
-- Returns  {0, buckets} if the job has another shape; {1, rebuilt, stood, missing, total, sent,
--          duplicate, failed, uncertain, expired, cancelled, finished, completed}: how many of the
--          outcomes were of recipients that had one, and how many entries of a slice that ends have
--          none
-- Atomic   because a counter rises exactly when a recipient gets its first outcome.
--
-- An outcome that stands is never changed. One that comes late beats a claim, whoever holds it: what
-- was sent was sent.

-- Two marks of where the job stood tell how fast it goes. The same rule as domain::pace::Pace, which
-- reads them: at most one every 5 s, and those from before a pause tell nothing.
local MARK_MS, STILL_MS = 5000, 10000

local function note(now, settled)
  local mark = call('HGET', HEADER, 'mark')
  local age = mark and now - tonumber(string.match(mark, '^%d+'))
  if not mark or age >= MARK_MS then
    call('HSET', HEADER, 'mark', digits(now) .. ' ' .. digits(settled))
    if mark and age < STILL_MS then
      call('HSET', HEADER, 'mark_before', mark)
    elseif mark then
      call('HDEL', HEADER, 'mark_before')
    end
  end
end

local NAMES = { s = 'sent', f = 'failed', u = 'uncertain', e = 'expired', x = 'cancelled' }

local entries, window, owner = tonumber(ARGV[2]), ARGV[9], ARGV[10]
local counted, rebuilt = locate({
  id = ARGV[1], entries = entries, submission = ARGV[3], buckets = ARGV[4],
  app = ARGV[5], client_msg_no = ARGV[6], target = ARGV[7], accepted_at_ms = ARGV[8],
})
if not counted then
  return { 0, rebuilt }
end

-- Nil if this owner has claimed nothing.
local mine = call('HGET', OWNERS, owner)
local in_doubt = mine and doubtful(mine)
local tally, settled, stood = {}, 0, 0

-- What a claim that is given up becomes.
local GIVEN_UP = { r = RELEASED, d = DOUBTED, k = RELEASED }

local function count_in(code, count)
  if not GIVEN_UP[code] then
    tally[code] = (tally[code] or 0) + count
    settled = settled + count
  end
end

for k = 5, #KEYS do
  local key, packed, codes = KEYS[k], ARGV[2 * k + 2], ARGV[2 * k + 3]
  local count, first = #codes, sub(codes, 1, 1)
  local bucket = call('GET', key)
  -- Mostly the window lies there in one piece, as it was claimed, and all end the same way.
  local at = mine and bucket and find(bucket, records(packed, mine), 1, true)
  if at and at % RECORD == 1 and codes == string.rep(first, count) then
    call('SETRANGE', key, at - 1, records(packed, GIVEN_UP[first] or first .. '\0\0'))
    count_in(first, count)
  else
    local fresh = {}
    local write, flush = writer(key)
    for i = 1, count do
      local fingerprint, code = sub(packed, i * 8 - 7, i * 8), sub(codes, i, i)
      local at = bucket and place(bucket, fingerprint)
      local state = at and sub(bucket, at + 8, at + 10)
      if GIVEN_UP[code] then
        if mine and at and (state == mine or state == in_doubt) then
          local keeps = code == 'k' and state == in_doubt
          write(at, fingerprint .. (keeps and DOUBTED or GIVEN_UP[code]))
        end
      elseif not at then
        fresh[#fresh + 1] = fingerprint .. code .. '\0\0'
        count_in(code, 1)
      elseif state == RELEASED or byte(state) >= 128 then
        write(at, fingerprint .. code .. '\0\0')
        count_in(code, 1)
      else
        stood = stood + 1
      end
    end
    flush()
    if #fresh > 0 then
      call('APPEND', key, table.concat(fresh))
      end_with_job(key, window)
    end
  end
end

-- The entries of the slice that got no outcome of their own are repeats of others, if its deliveries
-- saw so many: where somebody is missing beyond that, none of them is counted and all stay pending.
-- A job that was rebuilt lost what was counted before, so nobody can tell the two apart there.
local duplicate, after, missing = 0, counted + settled, 0
local repeats = tonumber(ARGV[11])
if repeats and after < entries then
  if entries - after <= repeats or call('HEXISTS', HEADER, 'rebuilt') == 1 then
    duplicate, after = entries - after, entries
  else
    missing = entries - after - repeats
  end
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
  local now = now_ms()
  call('HSET', HEADER, 'progress_at_ms', digits(now))
  call('HSET', SLICES, ARGV[1], after)
  local stands = standing()
  local over = settled_of(stands) - stands[1]
  local lost = over > 0 and tonumber(call('HGET', HEADER, 'lost') or 0) or 0
  if lost > 0 then
    -- The job was taken for abandoned too early: these were not lost.
    call('HINCRBY', HEADER, 'lost', -math.min(lost, over))
    stands = standing()
  end
  note(now, settled_of(stands))
  return { 1, rebuilt, stood, missing, unpack(stands) }
end
return { 1, rebuilt, stood, missing, unpack(standing()) }
