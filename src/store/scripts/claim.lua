-- CLAIM, a part of turn.lua: claims recipients for one owner.
--
-- first    the position in KEYS of the first bucket; each has one argument, from `from` on: different
--          fingerprints, 8 bytes each
-- until_ms when the caller waits for the answer no longer, in ms of this server's clock
-- Returns  {1} if the slice is done; {3, now in ms} if it comes late, and nothing was claimed;
--          {2, states, lefts, now in ms}: one byte per recipient (g granted, d granted in doubt,
--          t taken over, h held, or its outcome; an owner that asks again gets d for the recipients
--          that it got in doubt), and 4 bytes of milliseconds per held one. Then whether a call may
--          follow
-- Atomic   because between reading that a recipient is free and claiming it no other owner may do
--          the same.
local function claim(turn, counted, first, from, lease, until_ms)
  -- If the server was frozen, the caller is gone: its claims would have an owner that sends nothing.
  local now = now_ms()
  if now > until_ms then
    return { 3, digits(now) }, false
  end
  if counted >= turn.entries then
    return { 1 }, false
  end
  local owner, window = turn.owner, turn.window
  local mine = turn.mine
  if not mine then
    -- Takes two numbers; an earlier version takes one. The largest number of all is DOUBTED.
    mine = struct.pack('>I3', 8388608 + (call('HINCRBY', HEADER, 'owners', 2) - 1) % 8388606)
    call('HSET', OWNERS, owner, mine)
    end_with_job(OWNERS, window)
  end

  local in_doubt = doubtful(mine)

  -- How long the owner of a claim still has it, in ms; below 1 when its lease is over.
  local others = {}
  local function left_of(number)
    local left = others[number]
    if not left then
      local holder = holder_of(number)
      left = holder and struct.unpack('>I6', holder, 9) - now or 0
      others[number] = left
    end
    return left
  end

  -- Whether none of these is in the bucket, which is the usual case.
  local function none(bucket, packed)
    for i = 8, #packed, 8 do
      if find(bucket, sub(packed, i - 7, i), 1, true) then
        return false
      end
    end
    return true
  end

  local states, lefts, granted = {}, {}, false
  for k = first, #KEYS do
    local key, packed = KEYS[k], ARGV[from + k - first]
    local count = #packed / 8
    -- Settle changed states in what it read, and no places.
    local read = turn.read[key]
    local bucket = read or call('GET', key)
    if not bucket then
      call('SET', key, records(packed, mine))
      end_with_job(key, window)
      states[#states + 1] = string.rep('g', count)
      granted = true
    elseif none(bucket, packed) then
      call('APPEND', key, records(packed, mine))
      states[#states + 1] = string.rep('g', count)
      granted = true
    else
      bucket = read and call('GET', key) or bucket
      local fresh = {}
      local write, flush = writer(key)
      for i = 1, count do
        local fingerprint = sub(packed, i * 8 - 7, i * 8)
        local at = place(bucket, fingerprint)
        local answer = 'g'
        if not at then
          fresh[#fresh + 1] = fingerprint
        else
          local state = sub(bucket, at + 8, at + 10)
          if byte(state) < 128 and state ~= RELEASED then
            answer = sub(state, 1, 1)
          elseif state == in_doubt then
            answer = 'd'
          elseif state ~= mine then
            local left = state ~= RELEASED and left_of(state)
            if left and left > 0 then
              answer = 'h'
              lefts[#lefts + 1] = struct.pack('>I4', math.min(left, 4294967295))
            else
              if left then
                answer = state == DOUBTED and 'd' or 't'
              end
              write(at, fingerprint .. (left and in_doubt or mine))
            end
          end
          granted = granted or answer == 'g' or answer == 't' or answer == 'd'
        end
        states[#states + 1] = answer
      end
      flush()
      if #fresh > 0 then
        call('APPEND', key, records(table.concat(fresh), mine))
        granted = true
      end
    end
  end
  if granted then
    call('HSET', OWNERS, mine, owner .. struct.pack('>I6', now + lease))
  end
  return { 2, table.concat(states), table.concat(lefts), digits(now) }, granted
end

