-- Beginning of every script: the time of the Redis server, as the clocks of workers may differ, and claims.
--
-- A claim is one field of a hash, `<token> <expiry in ms> <lease in ms> <owner>`.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(value) return string.format('%d', value) end
-- Token and owner of a claim, and true if it lives.
local function claim_in(key, field)
  local value = redis.call('HGET', key, field)
  if not value then return nil, nil, false end
  local token, expires, lease, owner = string.match(value, '^(%d+) (%d+) (%d+) (.*)$')
  expires = tonumber(expires)
  -- One that is valid for longer than its lease was dated by a clock that was set back since: it is invalid.
  return tonumber(token), owner, expires > now and expires <= now + tonumber(lease)
end
local function hold_in(key, field, token, lease, owner)
  redis.call('HSET', key, field, string.format('%d %d %d %s', token, now + lease, lease, owner))
end
