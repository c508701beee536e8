-- TURN: settles recipients of one slice, claims others for the same owner, or both in one step.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners  5.. one bucket each: first those of the
--          recipients to settle, then those of the recipients to claim
-- ARGV     1 slice  2 entries  3 submission  4 buckets  5 app  6 client_msg_no  7 target
--          8 accepted_at in ms  9 window in s  10 owner, 8 bytes  11 lease in ms, '' to claim nothing
--          12 until when the caller waits for the answer to a claim, in ms of this server's clock
--          13 if the slice ends here, how many repeats its deliveries saw; else ''
--          14 how many buckets are settled, '' to settle nothing and not to count
--          15.. per bucket: see settle.lua and claim.lua; after all of these, if the job keeps ids, the
--          ids of messages per bucket that is settled
-- Returns  {0, buckets} if the job has another shape;
--          {1, 1 if the total grew by the slice, what was settled, what claim returns or {}}. What was
--          settled is {} or {stood, missing}, see settle.lua, and the progress of the job unless calls
--          follow: {.., total, sent, duplicate, failed, uncertain, expired, cancelled, finished,
--          completed, capped}
-- Atomic   because each of both is. What is released first can be claimed again.

-- Finds the record of a slice. Creates it if the ledger has lost the job or does not know the
-- submission: the slice itself then says what it belongs to, and the total grows by its entries.
--
-- Returns how many of its entries are counted, and 1 if the total grew by the slice; or nil and the
-- job's shape, if the slice was cut in another one.
local function locate(turn)
  local row = call('HMGET', HEADER, 'buckets', 'held', 'completed_at_ms', 'folded', 'mark', 'lost')
  local buckets, runs = row[1], not row[3]
  turn.mark, turn.lost = row[5], tonumber(row[6] or 0)
  unfold(row[4])
  if not buckets then
    begin('app', ARGV[5], 'client_msg_no', ARGV[6], 'target', ARGV[7], 'digest', '', 'buckets', ARGV[4],
      'accepted_at_ms', ARGV[8])
  elseif buckets ~= ARGV[4] then
    return nil, buckets
  elseif runs and not row[2] then
    -- The job is from a version without this mark.
    hold()
  end
  local rebuilt = 0
  local counted = call('HGET', SLICES, turn.id)
  if not counted then
    counted = 0
    call('HSET', SLICES, turn.id, 0)
    local submission = call('HGET', SUBMISSIONS, ARGV[3])
    if not submission or sub(submission, 1, 1) == '?' then
      local seen = submission and tonumber(sub(submission, 2)) or 0
      call('HSET', SUBMISSIONS, ARGV[3], '?' .. digits(seen + turn.entries))
      call('HINCRBY', HEADER, 'total', turn.entries)
      call('HSET', HEADER, 'rebuilt', 1)
      call('HDEL', HEADER, 'completed_at_ms')
      hold()
      rebuilt = 1
    end
  end
  return tonumber(counted), rebuilt
end

local turn = {
  id = ARGV[1], entries = tonumber(ARGV[2]), window = ARGV[9], owner = ARGV[10],
  -- What settle read of the buckets.
  read = {},
}
local counted, rebuilt = locate(turn)
if not counted then
  return { 0, rebuilt }
end
-- False if this owner has claimed nothing.
turn.mine = call('HGET', OWNERS, turn.owner)
local settles, claims = ARGV[14] ~= '', ARGV[11] ~= ''
local buckets = settles and tonumber(ARGV[14]) or 0
local recorded, claimed, goes_on = {}, {}, false
local stood, missing, stands
if settles then
  -- The buckets to settle have two arguments each, those to claim one.
  local ids = 15 + buckets + #KEYS - 4
  counted, stood, missing, stands = settle(turn, counted, buckets, 15, ARGV[13], #ARGV >= ids and ids or nil)
end
if claims then
  claimed, goes_on = claim(turn, counted, 5 + buckets, 15 + 2 * buckets, ARGV[11], tonumber(ARGV[12]))
end
if settles and goes_on then
  -- The job is not finished, and a later step tells its progress.
  recorded = { stood, missing }
elseif settles then
  recorded = { stood, missing, unpack(stands or standing()) }
end
return { 1, rebuilt, recorded, claimed }
