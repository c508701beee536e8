#!lua
-- TAKE_UNITS: takes a unit of a frequency cap for each recipient, for one job.
--
-- KEYS     1 the cap; its hashes have names that begin with this key
-- ARGV     1 owner, 6 bytes  2 most units of a recipient  3 period in ms  4 fingerprints, 8 bytes each
-- Returns  one byte per recipient: 1 if it has a unit now, 0 if none was free
-- Atomic   because two jobs may ask for the last unit of a recipient at once.
--
-- A unit is 12 bytes: when it was taken, in ms (6 bytes), and its owner. The same arithmetic as
-- domain::frequency_cap::Units. A hash holds the units of the recipients whose fingerprints begin
-- with the same two bytes, and in the field '' when it expires, in ms (6 bytes). That is moved once
-- in a period, and recipients whose units count no longer are removed then.

local call, sub, pack, unpack = redis.call, string.sub, struct.pack, struct.unpack
local UNIT = 12
local owner, most, period, packed = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local base = KEYS[1] .. ':'
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mine = pack('>I6', now) .. owner

-- The units that count and belong to other jobs.
local function others(stored)
  local kept, count = '', 0
  for at = 1, #stored, UNIT do
    if unpack('>I6', stored, at) + period > now and sub(stored, at + 6, at + 11) ~= owner then
      kept, count = kept .. sub(stored, at, at + UNIT - 1), count + 1
    end
  end
  return kept, count
end

-- The last unit of a recipient is its newest.
local function sweep(key)
  local row = call('HGETALL', key)
  for i = 1, #row, 2 do
    if row[i] ~= '' and unpack('>I6', row[i + 1], #row[i + 1] - UNIT + 1) + period <= now then
      call('HDEL', key, row[i])
    end
  end
end

local flags = {}
for i = 1, #packed, 8 do
  local fingerprint, key = sub(packed, i, i + 7), base .. unpack('>I2', packed, i)
  local row = call('HMGET', key, fingerprint, '')
  local kept, count = '', 0
  if row[1] then
    kept, count = others(row[1])
  end
  if count >= most then
    flags[#flags + 1] = '0'
  else
    flags[#flags + 1] = '1'
    if row[2] and unpack('>I6', row[2]) >= now + period then
      call('HSET', key, fingerprint, kept .. mine)
    else
      if row[2] then
        sweep(key)
      end
      local ends = now + 2 * period
      call('HSET', key, fingerprint, kept .. mine, '', pack('>I6', ends))
      call('PEXPIREAT', key, string.format('%.0f', ends))
    end
  end
end
return table.concat(flags)
