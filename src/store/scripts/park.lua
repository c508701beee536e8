#!lua
-- PARK: parks a target until a time, unless it is parked for longer already.
--
-- KEYS     1 the target's parking
-- ARGV     1 until, in ms since 1970  2 the parking, as JSON
-- Returns  nothing
-- Atomic   because if two workers park at once, the later end wins.

local parked = redis.call('GET', KEYS[1])
local stands = parked and tonumber(string.match(parked, '^%d+')) or 0
if tonumber(ARGV[1]) > stands then
  redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PXAT', ARGV[1])
end
