-- WITHDRAW: forgets the note of a job that no worker will register.
--
-- KEYS     1 header  2 slices  3 submissions  4 owners
-- ARGV     none
-- Returns  1 if there was such a note
-- Atomic   because a worker may register the job at the same time.

if call('EXISTS', HEADER) == 0 or call('HEXISTS', HEADER, 'buckets') == 1 then
  return 0
end
call('DEL', HEADER, HEADER .. ':trail')
return 1
