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
--          {1, 1 if the total grew by the slice, what settle returns or {}, what claim returns or {}}
-- Atomic   because each of both is. What is released first can be claimed again.

local turn = { id = ARGV[1], entries = tonumber(ARGV[2]), window = ARGV[9], owner = ARGV[10] }
local counted, rebuilt = locate({
  id = turn.id, entries = turn.entries, submission = ARGV[3], buckets = ARGV[4],
  app = ARGV[5], client_msg_no = ARGV[6], target = ARGV[7], accepted_at_ms = ARGV[8],
})
if not counted then
  return { 0, rebuilt }
end
local settles = ARGV[14] ~= ''
local buckets = settles and tonumber(ARGV[14]) or 0
local recorded, claimed = {}, {}
if settles then
  -- The buckets to settle have two arguments each, those to claim one.
  local ids = 15 + buckets + #KEYS - 4
  counted, recorded = settle(turn, counted, buckets, 15, ARGV[13], #ARGV >= ids and ids or nil)
end
if ARGV[11] ~= '' then
  claimed = claim(turn, counted, 5 + buckets, 15 + 2 * buckets, ARGV[11], tonumber(ARGV[12]))
end
return { 1, rebuilt, recorded, claimed }
