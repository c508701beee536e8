#!lua flags=allow-oom
-- REFUND: returns units that were booked and not used.
--
-- KEYS     one limiter each
-- ARGV     per limiter: units, interval in us
-- Returns  nothing
-- Atomic   because a lease may be booked between reading a TAT and writing it.
--
-- Not idempotent, and need not be: a refund that may have been made is not repeated, and a lost one
-- only leaves the limit unused for a moment.

for i = 1, #KEYS do
  local tat = redis.call('GET', KEYS[i])
  if tat then
    tat = tonumber(tat) - ARGV[2 * i - 1] * ARGV[2 * i]
    redis.call('SET', KEYS[i], string.format('%.17g', tat), 'KEEPTTL')
  end
end
