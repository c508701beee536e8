#!lua
-- TAKE_UNITS: takes a unit of a frequency cap for each recipient, for one job.
--
-- KEYS     1 the cap; the units of a period are in hashes whose names begin with this key
-- ARGV     1 owner, 6 bytes  2 most units of a recipient  3 period in ms  4 fingerprints, 8 bytes each
-- Returns  one byte per recipient: 1 if it has a unit now, 0 if none was free
-- Atomic   because two jobs may ask for the last unit of a recipient at once.
--
-- A unit is 12 bytes: when it was taken, in ms (6 bytes), and its owner. The same arithmetic as
-- domain::frequency_cap::Units. Units that count are in the hashes of the current period and of the
-- one before; a hash expires with its last unit, so nothing needs to be swept.

local call, sub, pack, unpack = redis.call, string.sub, struct.pack, struct.unpack
local UNIT = 12
local owner, most, period, packed = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local number = math.floor(now / period)
local current = string.format('%s:%.0f:', KEYS[1], number)
local before = string.format('%s:%.0f:', KEYS[1], number - 1)
local ends = string.format('%.0f', (number + 2) * period)
local mine = pack('>I6', now) .. owner

local flags = {}
for i = 1, #packed, 8 do
  local fingerprint, bucket = sub(packed, i, i + 7), unpack('>I2', packed, i)
  local here, there = current .. bucket, before .. bucket
  local old = call('HGET', there, fingerprint)
  local stored = (old or '') .. (call('HGET', here, fingerprint) or '')
  local kept, count = {}, 0
  for at = 1, #stored, UNIT do
    if unpack('>I6', stored, at) + period > now and sub(stored, at + 6, at + 11) ~= owner then
      count = count + 1
      kept[count] = sub(stored, at, at + UNIT - 1)
    end
  end
  if count < most then
    kept[count + 1] = mine
    if old then
      call('HDEL', there, fingerprint)
    end
    if call('HSET', here, fingerprint, table.concat(kept)) == 1 then
      call('PEXPIREAT', here, ends)
    end
    flags[#flags + 1] = '1'
  else
    flags[#flags + 1] = '0'
  end
end
return table.concat(flags)
