-- Beginning of every script: the time of the Redis server, as the clocks of workers may differ, and claims.
--
-- A claim is one field of a hash, `<token> <expiry in ms> <lease in ms> <owner>`.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(value) return string.format('%d', value) end
-- The time at which workers were there again after a silence of AWAY ms, or 0: leases that ended in the silence begin
-- again then, as no process can renew one while Redis is away.
local function back()
  local found = redis.pcall('HMGET', SEEN, 'at', 'back')
  if found.err then redis.call('DEL', SEEN) end -- no script wrote it
  local seen, came = tonumber(found[1] or '') or 0, tonumber(found[2] or '') or 0
  if now - seen > AWAY then
    came = now
    redis.call('HSET', SEEN, 'back', int(came))
  end
  redis.call('HSET', SEEN, 'at', int(now))
  redis.call('EXPIRE', SEEN, 24 * 3600) -- a missing time is a silence, too
  return came
end
-- Token and owner of a claim, and true if it lives.
local function claim_in(key, field)
  local value = redis.call('HGET', key, field)
  if not value then return nil, nil, false end
  local token, expires, lease, owner = string.match(value, '^(%d+) (%d+) (%d+) (.*)$')
  expires, lease = tonumber(expires), tonumber(lease)
  if expires <= now then
    local since = back()
    return tonumber(token), owner, since <= now and now < since + lease
  end
  -- One that is valid for longer than its lease was dated by a clock that was set back since: it is invalid.
  return tonumber(token), owner, expires <= now + lease
end
local function hold_in(key, field, token, lease, owner)
  redis.call('HSET', key, field, string.format('%d %d %d %s', token, now + lease, lease, owner))
end
