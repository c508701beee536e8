-- SETTLE, a part of turn.lua: records outcomes, releases claims and counts.
--
-- buckets  how many of KEYS, from the fifth on; each has two arguments, from `from` on: different
--          fingerprints, 8 bytes each; then a code each, r for release, d for release in doubt, k to
--          release a claim and to keep a doubt that it was given with, b for sent by the second
--          target of the job
-- ids      where in ARGV the ids of messages begin, a string of records per bucket; nil if there are none
-- last     if the slice ends here, how many repeats its deliveries saw; else ''
-- Returns  how many entries of the slice are counted; how many outcomes were of recipients that had one
--          already; how many entries of a slice that ends have no outcome; and the progress of the
--          job, if this step looked at it
-- Atomic   because a counter rises exactly when a recipient gets its first outcome.
--
-- A recorded outcome is never changed. An outcome that comes late replaces a claim, whoever holds
-- it: the send has happened.

-- Two marks of the job's progress tell its pace. The same rule as domain::pace::Pace, which reads
-- them: at most one mark every 5 s, and marks from before a pause do not count.
local MARK_MS, STILL_MS = 5000, 10000

-- How old a mark is, in ms.
local function age_of(mark)
  return now_ms() - tonumber(string.match(mark, '^%d+'))
end

local function note(mark, settled)
  call('HSET', HEADER, 'mark', digits(now_ms()) .. ' ' .. digits(settled))
  if mark and age_of(mark) < STILL_MS then
    call('HSET', HEADER, 'mark_before', mark)
  elseif mark then
    call('HDEL', HEADER, 'mark_before')
  end
end

local NAMES = {
  s = 'sent', b = 'sent', f = 'failed', u = 'uncertain', e = 'expired', x = 'cancelled', c = 'capped',
}

local function settle(turn, counted, buckets, from, last, ids)
  local entries, window = turn.entries, turn.window
  local mine = turn.mine
  local in_doubt = mine and doubtful(mine)
  local tally, settled, stood = {}, 0, 0

  -- The state of a recipient whose claim is released.
  local GIVEN_UP = { r = RELEASED, d = DOUBTED, k = RELEASED }

  -- The state of a recipient with an outcome.
  local function ended(code)
    return (code == 'b' and 's' or code) .. '\0\0'
  end

  local function count_in(code, count)
    if not GIVEN_UP[code] then
      tally[code] = (tally[code] or 0) + count
      settled = settled + count
    end
  end

  -- Keeps the ids of messages beside the bucket of their recipients.
  local function keep(key, records)
    if #records == 0 then
      return
    end
    local beside = ids_beside(key)
    if call('APPEND', beside, records) == #records then
      call('HSETNX', HEADER, 'keep_ids', '')
      end_with_job(beside, window)
    end
  end

  for k = 1, buckets do
    local given = ids and ARGV[ids + k - 1] or ''
    local key, packed, codes = KEYS[4 + k], ARGV[from + 2 * k - 2], ARGV[from + 2 * k - 1]
    local count, first = #codes, sub(codes, 1, 1)
    local bucket = call('GET', key)
    turn.read[key] = bucket or nil
    -- The window is mostly in one piece, as it was claimed, and all its recipients end in the same
    -- way.
    local at = mine and bucket and find(bucket, records(packed, mine), 1, true)
    if at and at % RECORD == 1 and codes == string.rep(first, count) then
      call('SETRANGE', key, at - 1, records(packed, GIVEN_UP[first] or ended(first)))
      count_in(first, count)
      keep(key, given)
    else
      -- Only a first outcome brings an id.
      local by_print, kept = #given > 0 and {}, {}
      each_id(given, function(print, _, record)
        by_print[print] = record
      end)
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
          fresh[#fresh + 1] = fingerprint .. ended(code)
          kept[#kept + 1] = by_print and by_print[fingerprint] or nil
          count_in(code, 1)
        elseif state == RELEASED or byte(state) >= 128 then
          write(at, fingerprint .. ended(code))
          kept[#kept + 1] = by_print and by_print[fingerprint] or nil
          count_in(code, 1)
        else
          stood = stood + 1
        end
      end
      flush()
      if #fresh > 0 then
        call('APPEND', key, table.concat(fresh))
        turn.read[key] = nil
        end_with_job(key, window)
      end
      keep(key, table.concat(kept))
    end
  end

  -- Entries of the slice without an outcome of their own count as repeats of others, up to the number
  -- that its deliveries saw. If more are missing, none is counted and all stay pending. A rebuilt job
  -- has lost its earlier counts, so the two cases look the same there, and all count as repeats. The
  -- same rule as domain::accounts::Remaining.
  local duplicate, after, missing, stands = 0, counted + settled, 0, nil
  local repeats = tonumber(last)
  if repeats and after < entries then
    if entries - after <= repeats or call('HEXISTS', HEADER, 'rebuilt') == 1 then
      duplicate, after = entries - after, entries
    else
      missing = entries - after - repeats
    end
  elseif after > entries then
    -- The slice was counted as done too early: takes back repeats that were none.
    duplicate, after = entries - after, entries
  end
  if settled > 0 or duplicate ~= 0 then
    for code, count in pairs(tally) do
      call('HINCRBY', HEADER, NAMES[code], count)
    end
    if tally.b then
      call('HINCRBY', HEADER, 'sent_by_fallback', tally.b)
    end
    if duplicate ~= 0 then
      call('HINCRBY', HEADER, 'duplicate', duplicate)
    end
    call('HSET', HEADER, 'progress_at_ms', digits(now_ms()))
    call('HSET', SLICES, turn.id, after)
    local mark, lost = turn.mark, turn.lost
    local is_due = not mark or age_of(mark) >= MARK_MS
    if lost > 0 or is_due then
      stands = standing()
      local over = settled_of(stands) - stands[1]
      if lost > 0 and over > 0 then
        -- The job was taken for abandoned too early: these outcomes were not lost.
        call('HINCRBY', HEADER, 'lost', -math.min(lost, over))
        stands = standing()
      end
      -- A job with nothing left has no pace.
      if stands[8] == 0 and is_due then
        note(mark, settled_of(stands))
      end
    end
  end
  return after, stood, missing, stands
end

