-- WAITS: notes that something of a job waits and will be looked at again.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     none
-- Returns  nothing
-- Atomic   because a job that is not there must not begin here.

if call('HEXISTS', HEADER, 'held') == 1 then
  call('HSET', HEADER, 'alive_at_ms', digits(now_ms()))
end
