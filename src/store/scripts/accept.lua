-- ACCEPT: registers a submission of a job before any of its slices is published.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     1 app  2 client_msg_no  3 target  4 content digest  5 submission  6 entries  7 parts
--          8 buckets  9 now in ms  10 warnings as JSON or ''
--          11 version of the stored message or ''  12 rate or ''  13 not before in ms or ''
--          14 callback URL or ''  15 queue to reply to or ''  16 priority
--          17 1 if the submission counts as expanded at once  18 recipients per slice
--          19 expires at in ms or ''  20 tags as JSON or ''
--          21 sending hours or ''  22 category or ''  23 second target or ''  24 sender or ''
--          25 spread until, in ms, or ''
--          26 the version of a list that was fetched, as JSON or ''
--          27 if the job keeps ids, what a recall needs to know, as JSON; else ''
-- Returns  {'conflict'}, {'settled'}, {'again', buckets, version, cut} or
--          {'expand', buckets, version, cut, 1 if this is the first submission, 2 if it was entered};
--          the version of the stored message that the job started with, 0 if there is none; the
--          recipients per slice with which the submission was accepted, 0 if that was not recorded
-- Atomic   because two producers may submit the same job at once: one decides the shape, and a
--          submission raises the total once.

-- Moves all records into the number of buckets that a far larger submission needs. A test message
-- to one user, followed by the same job to a million, would otherwise put all of them into one
-- bucket. Callers whose slices were cut in the old shape get the new one as an answer.
local function reshape(old, buckets)
  local moved = {}
  for number = 0, old - 1 do
    local bucket = call('GETDEL', HEADER .. ':' .. digits(number))
    for at = 1, bucket and #bucket or 0, RECORD do
      local high = struct.unpack('<I4', bucket, at + 4)
      local target = math.floor(high * buckets / 4294967296)
      moved[target] = moved[target] or {}
      table.insert(moved[target], sub(bucket, at, at + RECORD - 1))
    end
  end
  for number, pieces in pairs(moved) do
    call('SET', HEADER .. ':' .. digits(number), table.concat(pieces))
  end
end

-- Moves the ids of messages with their buckets.
local function reshape_ids(old, buckets)
  local moved = {}
  for number = 0, old - 1 do
    each_id(call('GETDEL', ids_beside(HEADER .. ':' .. digits(number))) or '', function(print, _, record)
      local target = math.floor(struct.unpack('<I4', print, 5) * buckets / 4294967296)
      moved[target] = moved[target] or {}
      table.insert(moved[target], record)
    end)
  end
  for number, pieces in pairs(moved) do
    call('SET', ids_beside(HEADER .. ':' .. digits(number)), table.concat(pieces))
  end
end

-- Reshaping pays off from eight times as many buckets. It blocks the server for a microsecond per
-- record, and a larger job has enough buckets to grow. Beyond 2^20 buckets the arithmetic would not
-- be exact.
local RESHAPE_FROM, RESHAPE_RECORDS, RESHAPE_BUCKETS = 8, 50000, 1048576

local row = call('HMGET', HEADER, 'buckets', 'digest', 'parts', 'total', 'template', 'folded')
unfold(row[6])
local buckets, digest, parts = row[1], row[2], row[3]
local first = not buckets
local template = row[5] or '0'
if first then
  buckets = ARGV[8]
  begin('app', ARGV[1], 'client_msg_no', ARGV[2], 'target', ARGV[3], 'digest', ARGV[4],
    'buckets', buckets, 'accepted_at_ms', ARGV[9], 'priority', ARGV[16])
  if ARGV[10] ~= '' then
    call('HSET', HEADER, 'warnings', ARGV[10])
  end
  if ARGV[11] ~= '' then
    template = ARGV[11]
    call('HSET', HEADER, 'template', template)
  end
  if ARGV[12] ~= '' then
    call('HSET', HEADER, 'rate', ARGV[12])
  end
  local optional = {
    [13] = 'not_before_ms', [19] = 'expires_at_ms', [20] = 'tags', [21] = 'window', [22] = 'category',
    [23] = 'fallback', [24] = 'sender', [25] = 'pace_until_ms',
  }
  for i, field in pairs(optional) do
    if ARGV[i] ~= '' then
      call('HSET', HEADER, field, ARGV[i])
    end
  end
else
  -- A header that was rebuilt from slices has no digest; it takes the first one that arrives.
  if digest == '' then
    call('HSET', HEADER, 'digest', ARGV[4])
  elseif digest ~= ARGV[4] then
    return { 'conflict' }
  end
  local old, wanted = tonumber(buckets), tonumber(ARGV[8])
  if wanted >= RESHAPE_FROM * old and wanted <= RESHAPE_BUCKETS
    and tonumber(row[4] or 0) <= RESHAPE_RECORDS then
    reshape(old, wanted)
    if call('HEXISTS', HEADER, 'keep_ids') == 1 then
      reshape_ids(old, wanted)
    end
    buckets = ARGV[8]
    call('HSET', HEADER, 'buckets', buckets)
  end
end

-- A job that comes in one part does not say so: every job has one.
if tonumber(ARGV[7]) > tonumber(parts or 1) then
  call('HSET', HEADER, 'parts', ARGV[7])
end
-- The first submission that names a callback or a reply queue decides.
if ARGV[14] ~= '' then
  call('HSETNX', HEADER, 'callback_url', ARGV[14])
end
if ARGV[15] ~= '' then
  call('HSETNX', HEADER, 'reply_to', ARGV[15])
end
-- The first submission that keeps ids decides. The field is empty if slices brought ids before.
if ARGV[27] ~= '' and (call('HGET', HEADER, 'keep_ids') or '') == '' then
  call('HSET', HEADER, 'keep_ids', ARGV[27])
end

local submission = call('HGET', SUBMISSIONS, ARGV[5])
if submission and sub(submission, 1, 1) ~= '?' then
  -- The job was ended because nothing was left to deliver. Now there is something again, and
  -- recipients without an outcome are pending as before; but not if the ledger lost outcomes, because
  -- recipients that have the message may be among them.
  local lost = call('HMGET', HEADER, 'lost', 'rebuilt', 'unsure')
  if tonumber(lost[1] or 0) > 0 and not lost[2] and not lost[3] then
    call('HDEL', HEADER, 'lost', 'completed_at_ms')
    call('HINCRBY', HEADER, 'reopened', 1)
    hold()
  end
  local now = standing()
  if settled_of(now) >= now[1] and sub(submission, -1) == '1' then
    return { 'settled' }
  end
  return { 'again', buckets, template, call('HGET', SUBMISSIONS, 'cut ' .. ARGV[5]) or 0 }
end

-- Slices that came before (the ledger was lost in between) have already added their entries to the
-- total.
local seen = submission and tonumber(sub(submission, 2)) or 0
call('HSET', SUBMISSIONS, ARGV[5], ARGV[6] .. ':' .. ARGV[17])
-- A list of one recipient is one slice, however it is cut.
if ARGV[6] ~= '1' then
  call('HSET', SUBMISSIONS, 'cut ' .. ARGV[5], ARGV[18])
end
if ARGV[17] == '1' then
  call('HINCRBY', HEADER, 'expanded', 1)
end
call('HINCRBY', HEADER, 'total', digits(math.max(tonumber(ARGV[6]) - seen, 0)))
call('HINCRBY', HEADER, 'submissions', 1)
if ARGV[26] ~= '' then
  call('HSET', HEADER, 'fetched', ARGV[26])
end
call('HDEL', HEADER, 'completed_at_ms')
hold()
if submission then
  return { 'again', buckets, template, ARGV[18] }
end
return { 'expand', buckets, template, ARGV[18], first and (digest and 2 or 1) or 0 }
