#!lua flags=allow-oom
-- GIVE_BACK_UNITS: gives back the units of a frequency cap that one job took.
--
-- KEYS     1 the cap, as in take_units.lua
-- ARGV     1 owner, 6 bytes  2 fingerprints, 8 bytes each
-- Returns  how many units went back
-- Atomic   because another job may take a unit of the same recipient at once.

local call, sub, unpack = redis.call, string.sub, struct.unpack
local UNIT = 12
local owner, packed = ARGV[1], ARGV[2]
local base = KEYS[1] .. ':'

local given = 0
for i = 1, #packed, 8 do
  local fingerprint, key = sub(packed, i, i + 7), base .. unpack('>I2', packed, i)
  local stored = call('HGET', key, fingerprint) or ''
  for at = 1, #stored, UNIT do
    if sub(stored, at + 6, at + 11) == owner then
      local rest = sub(stored, 1, at - 1) .. sub(stored, at + UNIT)
      if rest == '' then
        call('HDEL', key, fingerprint)
      else
        call('HSET', key, fingerprint, rest)
      end
      given = given + 1
      break
    end
  end
end
return given
