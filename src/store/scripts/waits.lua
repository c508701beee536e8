-- WAITS: notes that a slice of a job waits and will be delivered again.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     none
-- Returns  nothing
-- Atomic   because a job that does not exist must not begin here.

if call('HEXISTS', HEADER, 'held') == 1 then
  call('HSET', HEADER, 'alive_at_ms', digits(now_ms()))
end
