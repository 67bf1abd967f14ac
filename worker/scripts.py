"""The Lua scripts by which the work on a job is done: each one step that happens whole or not at all.

Every script gets the keys of one job in the same order (``worker.keys.JobKeys``):
``KEYS[1]`` the job's hash, ``[2]`` its claims, ``[3]`` its events, ``[4]`` the units of its current
stage, ``[5]`` the set of jobs that have not ended.

A claim is one field, ``<name>``: ``<token> <expiry in ms> <owner>``; its name is ``unit:<stage>:<index>``,
``advance:<stage>`` or ``close``. Times are those of the Redis server: workers' clocks may differ.

``worker.lifecycle`` has those by which a job begins, ends, is kept and is looked after.
"""

from __future__ import annotations

from typing import Final

from worker.keys import KEPT, NONCE, PREFIX, QUEUED, TURNS, WAITING

PRELUDE: Final = (
    f"""
local PREFIX, QUEUED, TURNS, WAITING, KEPT = '{PREFIX}', '{QUEUED}', '{TURNS}', '{WAITING}', '{KEPT}'
local NONCE = '{NONCE}'
"""
    + """
local job, claims, events, units, active = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function get(field) return redis.call('HGET', job, field) or '' end
local function num(field) return tonumber(redis.call('HGET', job, field) or '0') end
local function stamp() return string.format('%d.%03d', math.floor(now / 1000), now % 1000) end
local function touch() redis.call('HSET', job, 'touched', now) end
local function nonce_and_rest()
  local expires, nonce = string.match(get('signature'), '^1:(%d+):(%x+):')
  if not nonce then return nil, 0 end
  return NONCE .. nonce, tonumber(expires) - now
end
local function spend()
  -- A signature opens one job, once.
  local nonce, rest = nonce_and_rest()
  if nonce and rest > 0 then redis.call('SET', nonce, 'spent', 'PX', string.format('%d', rest)) end
end
local function final()
  local state = get('state')
  return state == 'succeeded' or state == 'failed' or state == 'cancelled'
end
local function read_claim(name)
  local value = redis.call('HGET', claims, name)
  if not value then return nil end
  local token, expires, owner = string.match(value, '^(%d+) (%d+) (.*)$')
  return tonumber(token), tonumber(expires), owner
end
local function live()
  local count = 0
  for _, name in ipairs(redis.call('HKEYS', claims)) do
    local _, expires = read_claim(name)
    if expires > now then count = count + 1 end
  end
  return count
end
local function release(name, token)
  local held = read_claim(name)
  if held == token then redis.call('HDEL', claims, name) end
end
local function add_bytes(index, count)
  if count ~= 0 then
    redis.call('HINCRBY', units, 'bytes:' .. index, count)
    redis.call('HINCRBY', job, 'bytes_done', count)
  end
end
local function event()
  local e = redis.call('HMGET', job, 'state', 'kind', 'stage', 'stage_number', 'stages',
    'units_done', 'units_total', 'bytes_done', 'bytes_total')
  for i = 1, 9 do e[i] = e[i] or '' end
  redis.call('XADD', events, 'MAXLEN', '~', 1000, '*', 'state', e[1], 'kind', e[2], 'stage', e[3],
    'stage_number', e[4], 'stages', e[5], 'units_done', e[6], 'units_total', e[7],
    'bytes_done', e[8], 'bytes_total', e[9])
end
local function keep(seconds)
  for i = 1, 4 do redis.call('EXPIRE', KEYS[i], seconds) end
end
local function finish(state, seconds)
  -- A job that failed and was kept for a retry has ended when it failed, not when it is removed.
  if get('kept') == '' then redis.call('HSET', job, 'state', state, 'ended', stamp()) end
  redis.call('HDEL', job, 'ending', 'fence', 'touched', 'flow_state', 'sent', 'kept', 'bytes_planned')
  redis.call('DEL', claims, units)
  redis.call('SREM', active, get('id'))
  redis.call('SREM', QUEUED, get('id'))
  redis.call('ZREM', KEPT, get('id'))
  event()
  keep(seconds)
end
"""
)

CLAIM: Final = (
    PRELUDE
    + """
-- name, stage, index ('' if not a unit), owner, lease ms, most deliveries, owner known to be dead
local name, stage, index, owner, lease = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
if redis.call('EXISTS', job) == 0 then return {'gone'} end
-- What was kept of a failed job is removed under the claim to close it.
local removes = name == 'close' and get('kept') ~= '' and tonumber(get('kept')) <= now
if final() and not removes then return {'over', 0} end
local token, expires, holder = read_claim(name)
local taken = token and expires > now and holder ~= ARGV[7]
local ending = get('ending')
if ending ~= '' and name ~= 'close' then
  if token and not taken then redis.call('HDEL', claims, name) end
  return {'over', live() == 0 and 1 or 0}
end
-- A stray copy of the message must not take away what a running job has staged.
if name == 'close' and ending == '' and not removes then return {'stale'} end
if index ~= '' then
  if stage ~= num('position') then return {'stale'} end
  if redis.call('HEXISTS', units, 'result:' .. index) == 1 then
    return {'done', num('units_done') == num('units_total') and 1 or 0}
  end
end
if string.sub(name, 1, 8) == 'advance:' then
  -- Of use: the first one, the one that joins a complete stage, the one that sends units nobody sent.
  local position = num('position')
  local unsent = stage < position and num('sent') < position
  local joins = stage == position and (position < 0 or num('units_done') == num('units_total'))
  if not unsent and not joins then return {'stale'} end
end
if taken then return {'busy', holder} end
local deliveries = redis.call('HINCRBY', units, 'deliveries:' .. name, 1)
if deliveries > tonumber(ARGV[6]) then
  redis.call('HDEL', claims, name)
  return {'poison', deliveries - 1}
end
token = redis.call('HINCRBY', job, 'fence', 1)
redis.call('HSET', claims, name, string.format('%d %d %s', token, now + lease, owner))
touch()
if get('state') == 'queued' then
  redis.call('HSET', job, 'state', 'running', 'started', stamp())
  event()
end
if index == '' then return {'ok', token} end
add_bytes(index, -tonumber(redis.call('HGET', units, 'bytes:' .. index) or '0'))
return {'ok', token, redis.call('HGET', units, 'unit:' .. index)}
"""
)

BEAT: Final = (
    PRELUDE
    + """
-- name, index ('' if not a unit), token, lease ms, bytes since the last beat
if redis.call('EXISTS', job) == 0 then return 'gone' end
if read_claim(ARGV[1]) ~= tonumber(ARGV[3]) then return 'lost' end
local _, _, owner = read_claim(ARGV[1])
redis.call('HSET', claims, ARGV[1], string.format('%d %d %s', ARGV[3], now + ARGV[4], owner))
touch()
if ARGV[2] ~= '' and tonumber(ARGV[5]) ~= 0 then
  add_bytes(ARGV[2], tonumber(ARGV[5]))
  event()
end
if get('ending') ~= '' and ARGV[1] ~= 'close' then return 'ending' end
return 'ok'
"""
)

RELEASE: Final = (
    PRELUDE
    + """
-- name, token, '1': the try does not count -> 1: close now
if ARGV[3] == '1' and read_claim(ARGV[1]) == tonumber(ARGV[2]) then
  redis.call('HINCRBY', units, 'deliveries:' .. ARGV[1], -1)
end
release(ARGV[1], tonumber(ARGV[2]))
if redis.call('EXISTS', job) == 0 or get('ending') == '' then return 0 end
return live() == 0 and 1 or 0
"""
)

RECORD: Final = (
    PRELUDE
    + """
-- name, stage, index, token, result, cost in bytes -> {recorded now, stage complete, close now}
local index = ARGV[3]
release(ARGV[1], tonumber(ARGV[4]))
if redis.call('EXISTS', job) == 0 or final() then return {0, 0, 0} end
if get('ending') ~= '' then return {0, 0, live() == 0 and 1 or 0} end
if num('position') ~= tonumber(ARGV[2]) then return {0, 0, 0} end
local first = redis.call('HSETNX', units, 'result:' .. index, ARGV[5])
if first == 1 then
  redis.call('HINCRBY', job, 'units_done', 1)
  add_bytes(index, tonumber(ARGV[6]) - tonumber(redis.call('HGET', units, 'bytes:' .. index) or '0'))
  touch()
  event()
end
return {first, num('units_done') == num('units_total') and 1 or 0, 0}
"""
)

OPEN_STAGE: Final = (
    PRELUDE
    + """
-- advance claim, token, position, name, flow state, bytes in all, lifetime, then each unit
if redis.call('EXISTS', job) == 0 or read_claim(ARGV[1]) ~= tonumber(ARGV[2]) then return 'lost' end
if get('ending') ~= '' then return 'ending' end
if num('position') >= tonumber(ARGV[3]) then return 'stale' end
if num('position') < 0 then spend() end
redis.call('HINCRBY', job, 'bytes_planned', ARGV[6])
redis.call('DEL', units)
redis.call('HSET', job, 'position', ARGV[3], 'stage', ARGV[4], 'stage_number', ARGV[3] + 1,
  'flow_state', ARGV[5], 'units_done', 0, 'units_total', #ARGV - 7, 'bytes_done', 0, 'bytes_total', ARGV[6])
for i = 8, #ARGV do redis.call('HSET', units, 'unit:' .. (i - 8), ARGV[i]) end
touch()
event()
keep(ARGV[7])
return 'ok'
"""
)

SENT: Final = (
    PRELUDE
    + """
-- claim, token, position whose units are on the queue
release(ARGV[1], tonumber(ARGV[2]))
if redis.call('EXISTS', job) == 1 and not final() then
  if num('sent') < tonumber(ARGV[3]) then redis.call('HSET', job, 'sent', ARGV[3]) end
  touch()
end
"""
)

PENDING: Final = (
    PRELUDE
    + """
-- -> position, then the indexes of the units that are neither done nor being done
local out = {num('position')}
for i = 0, num('units_total') - 1 do
  local _, expires = read_claim('unit:' .. num('position') .. ':' .. i)
  if redis.call('HEXISTS', units, 'result:' .. i) == 0 and not (expires and expires > now) then
    out[#out + 1] = i
  end
end
return out
"""
)
