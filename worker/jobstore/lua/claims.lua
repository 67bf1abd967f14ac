-- Beginning of every script: the time of the Redis server, as the clocks of workers may differ, and claims.
--
-- A claim is one field of a hash, `<token> <expiry in ms> <lease in ms> <owner>`.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(value) return string.format('%d', value) end
-- Beginning and end of the last time in which no worker looked for lost jobs for AWAY ms, because Redis was away or all of
-- them were. No process could renew a claim then.
local function silence()
  local found = redis.pcall('HMGET', SEEN, 'at', 'from', 'to')
  if found.err then redis.call('DEL', SEEN) end -- no script wrote it
  local at, from, to = tonumber(found[1] or '') or 0, tonumber(found[2] or '') or 0, tonumber(found[3] or '') or 0
  if now - at > AWAY then
    from, to = at, now
    redis.call('HSET', SEEN, 'from', int(from), 'to', int(to))
  end
  redis.call('HSET', SEEN, 'at', int(now))
  redis.call('EXPIRE', SEEN, 24 * 3600) -- a missing time is a silence, too
  return from, to
end
-- Token and owner of a claim, and true if it lives.
local function claim_in(key, field)
  local value = redis.call('HGET', key, field)
  if not value then return nil, nil, false end
  local token, expires, lease, owner = string.match(value, '^(%d+) (%d+) (%d+) (.*)$')
  expires, lease = tonumber(expires), tonumber(lease)
  if expires <= now then
    -- A lease that ended in a silence begins again when that ends; once, so a slow search does not renew it for ever.
    local from, to = silence()
    return tonumber(token), owner, from < expires and expires <= to and to <= now and now < to + lease
  end
  -- One that is valid for longer than its lease was dated by a clock that was set back since: it is invalid.
  return tonumber(token), owner, expires <= now + lease
end
local function hold_in(key, field, token, lease, owner)
  redis.call('HSET', key, field, string.format('%d %d %d %s', token, now + lease, lease, owner))
end
