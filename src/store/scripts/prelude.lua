-- The functions that the scripts of one job share; this file comes before each of them.
--
-- KEYS  1 the job's header  2 its slices  3 its submissions  4 its owners  5.. its buckets
--
-- A script sees and changes all of them as one atomic step, because exactly the transitions made in
-- the buckets raise the counters in the header. Every script may be repeated: it counts changes, and
-- a repetition changes nothing.
--
-- A bucket is a string of records of 11 bytes: 8 bytes of fingerprint and 3 bytes of state, which is
--   an outcome   its code and two zero bytes
--   released     'r' and two zero bytes: as good as no record
--   a claim      the number of its owner, with the highest bit set
--   in doubt     the highest number, which no owner gets: released by an owner that made a call and
--                does not know its result. A script that does not know this state reads it as a
--                claim whose lease is over, which is the same to its worker
-- The fingerprint begins with its lowest byte, where those of one bucket differ, so that a plain
-- search seldom stops at the wrong place. One read and one write per bucket and step carry all of
-- its recipients: the cost is in the number of calls, then in the number of Lua operations.
--
-- The keys of a running job do not expire, however long its slices wait; `held` in the header says
-- so. When the job completes, all of them expire after the dedup window.
--
-- Owners is a hash from number (3 bytes) to owner and the end of its lease in ms (8 and 6 bytes), and
-- from owner to number. Numbers are not used again while a job is remembered. A number that is not
-- in the hash belongs to an owner whose lease is over.

local HEADER, SLICES, SUBMISSIONS, OWNERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local call, sub, find, gsub, byte = redis.call, string.sub, string.find, string.gsub, string.byte

local RECORD = 11
local RELEASED = 'r\0\0'
local DOUBTED = '\255\255\255'

-- The number under which an owner holds recipients in doubt: the one after its own, which no other
-- owner has. So the doubt outlives an answer that is lost, and an owner that asks again gets the
-- doubt again.
local function doubtful(number)
  return struct.pack('>I3', struct.unpack('>I3', number) + 1)
end

-- The owner and the end of its lease for a number of either kind.
local function holder_of(number)
  return call('HGET', OWNERS, number)
    or call('HGET', OWNERS, struct.pack('>I3', struct.unpack('>I3', number) - 1))
end

-- Milliseconds of the server's clock, the only clock that leases use. A script runs at one moment.
local moment = nil
local function now_ms()
  if not moment then
    local time = call('TIME')
    moment = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return moment
end

-- Lua writes large numbers with only 14 digits.
local function digits(number)
  return string.format('%.0f', number)
end

-- The key of the ids of messages to the recipients of a bucket. A record there is the fingerprint as
-- in the bucket, the length of the rest in 2 bytes, and the rest, whose first byte is the state of the
-- recall.
local function ids_beside(bucket)
  return HEADER .. ':i' .. sub(bucket, #HEADER + 2)
end

-- Bytes of such a record before the rest.
local ID_HEAD = 10

-- Calls each with the fingerprint of each record, where it begins, and the record.
local function each_id(ids, each)
  local at = 1
  while at < #ids do
    local after = at + ID_HEAD + struct.unpack('>I2', ids, at + 8)
    each(sub(ids, at, at + 7), at, sub(ids, at, after - 1))
    at = after
  end
end

-- Sets or removes the time to live of every key of the job: about 2 ms of the server per million
-- recipients. The keys of the buckets are built here; they share the header's hash tag.
local function all_keys(command, ...)
  for i = 1, 4 do
    call(command, KEYS[i], ...)
  end
  call(command, HEADER .. ':reasons', ...)
  call(command, HEADER .. ':trail', ...)
  local row = call('HMGET', HEADER, 'buckets', 'keep_ids')
  for number = 0, tonumber(row[1]) - 1 do
    local bucket = HEADER .. ':' .. digits(number)
    call(command, bucket, ...)
    if row[2] then
      call(command, ids_beside(bucket), ...)
    end
  end
end

-- How the slices and submissions begin in the header of a completed small job, see complete.lua. No
-- other field of a header begins like that.
local FOLDED = { ['/'] = SLICES, ['='] = SUBMISSIONS }

-- Makes them keys again. The fields and the mark go last: a repetition then restores the same.
local function unfold(folded)
  if not folded then
    return
  end
  local fields, left, gone = call('HGETALL', HEADER), call('PTTL', HEADER), { 'folded' }
  for i = 1, #fields, 2 do
    local key = FOLDED[sub(fields[i], 1, 1)]
    if key then
      call('HSET', key, sub(fields[i], 2), fields[i + 1])
      if left > 0 then
        call('PEXPIRE', key, left)
      end
      gone[#gone + 1] = fields[i]
    end
  end
  call('HDEL', HEADER, unpack(gone))
end

-- The job runs, perhaps again: its keys do not expire.
local function hold()
  if call('HSET', HEADER, 'held', 1) == 1 then
    all_keys('PERSIST')
  end
end

-- A key that was just created expires with the others of its job.
local held = nil
local function end_with_job(key, window)
  if held == nil then
    held = call('HEXISTS', HEADER, 'held') == 1
  end
  if not held then
    call('EXPIRE', key, window)
  end
end

-- Begins a job that does not exist. The counts of an earlier life are removed. Its buckets stay and
-- still protect their recipients, and the numbers of its owners are not used again.
local function begin(...)
  call('DEL', SLICES, SUBMISSIONS, OWNERS)
  call('HDEL', HEADER, 'awaited')
  call('HSET', HEADER, 'held', 1, 'owners', digits(now_ms() % 8388607), ...)
end

-- Where the record of a fingerprint begins in a bucket.
local function place(bucket, fingerprint)
  local at = find(bucket, fingerprint, 1, true)
  while at and at % RECORD ~= 1 do
    at = find(bucket, fingerprint, at + 1, true)
  end
  return at
end

-- Packed fingerprints as records that all have the same state.
local function records(packed, state)
  return (gsub(packed, '........', '%0' .. gsub(state, '%%', '%%%%')))
end

-- Changes states in a bucket; adjacent records in one call.
local function writer(key)
  local start, pieces = nil, {}
  local function flush()
    if start then
      call('SETRANGE', key, start - 1, table.concat(pieces))
      start, pieces = nil, {}
    end
  end
  local function write(at, record)
    if start and at ~= start + #pieces * RECORD then
      flush()
    end
    start = start or at
    pieces[#pieces + 1] = record
  end
  return write, flush
end

-- The progress of the job: total, six outcomes, finished, completed, and the outcome `capped`.
-- Recipients whose outcome was lost are uncertain.
local function standing()
  local row = call('HMGET', HEADER, 'total', 'sent', 'duplicate', 'failed', 'uncertain', 'expired',
    'cancelled', 'parts', 'submissions', 'expanded', 'rebuilt', 'completed_at_ms', 'lost',
    'capped')
  for i = 1, 10 do
    row[i] = tonumber(row[i] or 0)
  end
  row[5] = row[5] + tonumber(row[13] or 0)
  local capped = tonumber(row[14] or 0)
  local settled = row[2] + row[3] + row[4] + row[5] + row[6] + row[7] + capped
  -- How many parts a rebuilt job had is not known: those that were seen count.
  local needed = row[9]
  if not row[11] then
    needed = math.max(needed, row[8])
  end
  local finished = (needed > 0 or row[1] > 0) and settled >= row[1] and row[10] >= needed
  return {
    row[1], row[2], row[3], row[4], row[5], row[6], row[7],
    finished and 1 or 0, row[12] and 1 or 0, capped,
  }
end

-- Recipients with an outcome.
local function settled_of(stands)
  return stands[2] + stands[3] + stands[4] + stands[5] + stands[6] + stands[7] + stands[10]
end
