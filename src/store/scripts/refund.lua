#!lua flags=allow-oom
-- REFUND: returns units that were booked and not used.
--
-- KEYS     1 the limiter
-- ARGV     1 units  2 interval in us
-- Returns  nothing
-- Atomic   because a lease may be booked between reading a TAT and writing it.
--
-- Not idempotent, and need not be: a refund that may have been made is not repeated, and a lost one
-- only leaves the limit unused for a moment.

local tat = redis.call('GET', KEYS[1])
if tat then
  tat = tonumber(tat) - ARGV[1] * ARGV[2]
  redis.call('SET', KEYS[1], string.format('%.17g', tat), 'KEEPTTL')
end
