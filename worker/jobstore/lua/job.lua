-- Beginning of every script of a job, after claims.lua. KEYS: the job's hash, its claims, its events, the units of
-- its current stage, the set of the jobs that have not ended (jobstore/keys.py: JobKeys).
--
-- The name of a claim is `unit:<stage>:<index>`, `advance:<stage>` or `close`. A job's tokens grow with each claim, through
-- all its attempts.
local job, claims, events, units, active = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local function exists() return redis.call('EXISTS', job) == 1 end
local function get(field) return redis.call('HGET', job, field) or '' end
local function num(field) return tonumber(redis.call('HGET', job, field) or '0') end
local function stamp() return string.format('%d.%03d', math.floor(now / 1000), now % 1000) end
local function final()
  local state = get('state')
  return state == 'succeeded' or state == 'failed' or state == 'cancelled'
end

-- The last change of the job, so that a script whose reply was lost returns the same when it is run again.
local function mark(what) redis.call('HSET', job, 'by', what) end

local function touch() redis.call('HSET', job, 'touched', int(now)) end

-- The job has advanced: recovery may be quick again.
local function moved() redis.call('HSET', job, 'touched', int(now), 'recoveries', 0) end

local function claim_of(name) return claim_in(claims, name) end
local function hold(name, token, lease, owner) hold_in(claims, name, token, lease, owner) end
local function holds(name, token, owner)
  local found, holder = claim_of(name)
  return found == tonumber(token) and holder == owner
end
local function live()
  local count = 0
  for _, name in ipairs(redis.call('HKEYS', claims)) do
    local _, _, lives = claim_of(name)
    if lives then count = count + 1 end
  end
  return count
end
-- 1: the end of the job is decided and no process works on it, so it can be closed.
local function due() return get('ending') ~= '' and live() == 0 and 1 or 0 end
local function complete() return num('units_done') == num('units_total') and 1 or 0 end

local function set_bytes(index, count)
  local before = tonumber(redis.call('HGET', units, 'bytes:' .. index) or '0')
  if count ~= before then
    redis.call('HSET', units, 'bytes:' .. index, int(count))
    redis.call('HINCRBY', job, 'bytes_done', int(count - before))
  end
  return count ~= before
end
local function event()
  local e = redis.call('HMGET', job, 'state', 'kind', 'stage', 'stage_number', 'stages',
    'units_done', 'units_total', 'bytes_done', 'bytes_total')
  for i = 1, 9 do e[i] = e[i] or '' end
  redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'state', e[1], 'kind', e[2], 'stage', e[3],
    'stage_number', e[4], 'stages', e[5], 'units_done', e[6], 'units_total', e[7],
    'bytes_done', e[8], 'bytes_total', e[9])
end
local function expire(seconds)
  for i = 1, 4 do redis.call('EXPIRE', KEYS[i], seconds) end
end

-- A signature opens one job, once.
local function nonce_and_rest()
  local expires, nonce = string.match(get('signature'), '^1:(%d+):(%x+):')
  if not nonce then return nil, 0 end
  return NONCE .. nonce, tonumber(expires) - now
end
local function spend()
  local nonce, rest = nonce_and_rest()
  if nonce and rest > 0 then redis.call('SET', nonce, 'spent', 'PX', int(rest)) end
end

local function finish(state, seconds)
  -- A failed job that was kept for a retry ended when it failed, not when it is removed.
  if get('kept') == '' then redis.call('HSET', job, 'state', state, 'ended', stamp()) end
  redis.call('HDEL', job, 'ending', 'touched', 'recoveries', 'flow_state', 'sent', 'kept', 'bytes_planned',
    'commits', 'committing', 'taken')
  redis.call('DEL', claims, units)
  redis.call('SREM', active, get('id'))
  redis.call('SREM', QUEUED, get('id'))
  redis.call('ZREM', KEPT, get('id'))
  event()
  expire(seconds)
end
