#!lua
-- RAISE: raises the sequence of the ledger, a number that only a ledger with older data can lower.
--
-- KEYS     1 sequence  2 times when the ledger was found to have gone back
-- ARGV     1 the highest number that was seen outside of the ledger, 0 if none
-- Returns  {number it has now, 1 if it was lower than the one that was seen}
-- Atomic   because a loss must be noted before a higher number hides it.

local time = redis.call('TIME')
local stood, seen = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1])
local back = seen > stood
if back then
  redis.call('RPUSH', KEYS[2], string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
  redis.call('LTRIM', KEYS[2], -100, -1)
end
local number = math.max(stood, seen) + 1
redis.call('SET', KEYS[1], string.format('%.0f', number))
return { number, back and 1 or 0 }
