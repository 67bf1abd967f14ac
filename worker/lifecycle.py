"""The Lua scripts by which a job is queued, begun, ended, kept, retried and looked after.

They take the keys of one job as those of ``worker.scripts`` do.
"""

from __future__ import annotations

from typing import Final

from worker.scripts import PRELUDE

SUBMIT: Final = (
    PRELUDE
    + """
-- id, kind, request, stages, lifetime in seconds, traffic class, submitter, format, most queued (0: any
-- number), signature or '' -> 1, or 0 if the queue is full; KEYS[6]: the sorted set of all jobs
local most = tonumber(ARGV[9])
if most > 0 and redis.call('SCARD', QUEUED) >= most then return 0 end
redis.call('HSET', job, 'id', ARGV[1], 'kind', ARGV[2], 'request', ARGV[3], 'state', 'queued',
  'stages', ARGV[4], 'submitted', stamp(), 'position', -1, 'sent', -1,
  'traffic', ARGV[6], 'submitter', ARGV[7], 'format', ARGV[8])
if ARGV[10] ~= '' then redis.call('HSET', job, 'signature', ARGV[10]) end
redis.call('SADD', active, ARGV[1])
redis.call('SADD', QUEUED, ARGV[1])
local line = WAITING .. ARGV[6] .. ':' .. ARGV[7]
if redis.call('RPUSH', line, ARGV[1]) == 1 then redis.call('RPUSH', TURNS .. ARGV[6], ARGV[7]) end
redis.call('EXPIRE', line, ARGV[5])
redis.call('EXPIRE', TURNS .. ARGV[6], ARGV[5])
redis.call('ZADD', KEYS[6], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now - 2000 * ARGV[5])
touch()
-- No event: the record says that it waits, and a stream takes 4 KiB from its first one on.
keep(ARGV[5])
return 1
"""
)

NEXT: Final = (
    PRELUDE
    + """
-- id of the job whose message this is, lifetime in seconds -> id of the job to begin
--
-- As many messages as jobs wait for their beginning, and each begins the one whose submitter has the turn.
-- A job that waits no more was taken by a process that died before it began: it begins by its own message.
if redis.call('SISMEMBER', QUEUED, ARGV[1]) == 0 then return ARGV[1] end
local traffic = get('traffic')
while true do
  local who = redis.call('LPOP', TURNS .. traffic)
  if not who then break end
  local line = WAITING .. traffic .. ':' .. who
  local id = redis.call('LPOP', line)
  if redis.call('LLEN', line) > 0 then
    redis.call('RPUSH', TURNS .. traffic, who)
    redis.call('EXPIRE', TURNS .. traffic, ARGV[2])
  end
  if id and redis.call('SREM', QUEUED, id) == 1 and redis.call('EXISTS', PREFIX .. 'job:' .. id) == 1 then
    return id
  end
end
redis.call('SREM', QUEUED, ARGV[1])
return ARGV[1]
"""
)

ADMIT: Final = (
    PRELUDE
    + """
-- id -> {now in ms, 1: the signature has not opened a job before}
local nonce, rest = nonce_and_rest()
if not nonce or rest <= 0 then return {now, 1} end
redis.call('SET', nonce, ARGV[1], 'NX', 'PX', string.format('%d', rest))
return {now, redis.call('GET', nonce) == ARGV[1] and 1 or 0}
"""
)

END: Final = (
    PRELUDE
    + """
-- ending, error or '', result or '', claim to release or '', its token, lifetime -> {accepted, close now}
if redis.call('EXISTS', job) == 0 then return {-1, 0} end
if ARGV[4] ~= '' then release(ARGV[4], tonumber(ARGV[5])) end
if final() then return {0, 0} end
if get('ending') ~= '' then return {0, live() == 0 and 1 or 0} end
spend()
if ARGV[2] ~= '' then redis.call('HSET', job, 'error', ARGV[2]) end
if ARGV[3] ~= '' then redis.call('HSET', job, 'result', ARGV[3]) end
if get('state') == 'queued' then
  -- Nothing of it ever ran, so there is nothing to remove and no need for a worker.
  finish(ARGV[1], ARGV[6])
  return {1, 0}
end
redis.call('HSET', job, 'ending', ARGV[1])
touch()
event()
return {1, live() == 0 and 1 or 0}
"""
)

CLOSED: Final = (
    PRELUDE
    + """
-- token of the claim 'close' or '' to close without one, lifetime
if redis.call('EXISTS', job) == 0 then return 0 end
if get('kept') == '' and (final() or get('ending') == '') then return 0 end
if ARGV[1] ~= '' and read_claim('close') ~= tonumber(ARGV[1]) then return 0 end
finish(get('ending'), ARGV[2])
return 1
"""
)

KEEP: Final = (
    PRELUDE
    + """
-- token of the claim 'close', seconds to keep the work of the failed job for, lifetime -> 1: it is kept
if redis.call('EXISTS', job) == 0 or get('ending') ~= 'failed' then return 0 end
if read_claim('close') ~= tonumber(ARGV[1]) then return 0 end
if num('position') < 1 and num('units_done') == 0 then return 0 end
local until_ = now + 1000 * ARGV[2]
redis.call('HSET', job, 'state', 'failed', 'ended', stamp(), 'kept', until_)
redis.call('HDEL', job, 'ending', 'touched')
redis.call('DEL', claims)
redis.call('SREM', active, get('id'))
redis.call('ZADD', KEPT, until_, get('id'))
event()
keep(ARGV[3])
return 1
"""
)

DISCARD: Final = (
    PRELUDE
    + """
-- -> 1: what was kept is to be removed now
if get('kept') == '' then return 0 end
redis.call('HSET', job, 'kept', 0)
redis.call('ZADD', KEPT, 0, get('id'))
return 1
"""
)

OVERDUE: Final = (
    PRELUDE
    + """
-- -> ids of the failed jobs that have been kept for long enough
local out = redis.call('ZRANGEBYSCORE', KEPT, '-inf', now, 'LIMIT', 0, 100)
for i = #out, 1, -1 do
  if redis.call('EXISTS', PREFIX .. 'job:' .. out[i]) == 0 then
    redis.call('ZREM', KEPT, out[i])
    table.remove(out, i)
  end
end
return out
"""
)

RETRY: Final = (
    PRELUDE
    + """
-- '1' to begin anew, lifetime -> 'gone', 'not failed', 'busy', 'anew' or 'on'
if redis.call('EXISTS', job) == 0 then return 'gone' end
if get('state') ~= 'failed' then return 'not failed' end
if live() > 0 then return 'busy' end
local anew = ARGV[1] == '1' or get('kept') == '' or tonumber(get('kept')) <= now
redis.call('HDEL', job, 'error', 'ended', 'kept')
redis.call('ZREM', KEPT, get('id'))
redis.call('DEL', claims)
if anew then
  redis.call('DEL', units)
  redis.call('HSET', job, 'position', -1, 'sent', -1)
  redis.call('HDEL', job, 'flow_state', 'bytes_planned', 'stage', 'stage_number', 'units_done', 'units_total',
    'bytes_done', 'bytes_total')
else
  -- A unit that killed its processes is tried as often once more.
  for _, field in ipairs(redis.call('HKEYS', units)) do
    if string.sub(field, 1, 11) == 'deliveries:' then redis.call('HDEL', units, field) end
  end
end
redis.call('HSET', job, 'state', 'running', 'started', stamp())
redis.call('HINCRBY', job, 'retries', 1)
redis.call('SADD', active, get('id'))
touch()
event()
keep(ARGV[2])
return anew and 'anew' or 'on'
"""
)

HAND_BACK: Final = (
    PRELUDE
    + """
-- owners that were stopped -> lists {what, stage, index} of what they had begun; those tries do not count
local out = {}
local stopped = {}
for _, owner in ipairs(ARGV) do stopped[owner] = true end
for _, name in ipairs(redis.call('HKEYS', claims)) do
  local _, _, owner = read_claim(name)
  if stopped[owner] then
    out[#out + 1] = {string.match(name, '^(%a+):?(%-?%d*):?(%d*)$')}
    redis.call('HDEL', claims, name)
    redis.call('HINCRBY', units, 'deliveries:' .. name, -1)
  end
end
return out
"""
)

LOOK: Final = (
    PRELUDE
    + """
-- quiet ms after which a job without a claim is stuck, id, '1': every waiting job has its message, ms that a job
-- may take or 0 -> lists {what, stage, index}
local out = {}
if redis.call('EXISTS', job) == 0 or final() then
  if redis.call('EXISTS', job) == 0 then redis.call('DEL', claims, events, units) end
  redis.call('SREM', active, ARGV[2])
  redis.call('SREM', QUEUED, ARGV[2])
  return out
end
if ARGV[3] == '1' and redis.call('SISMEMBER', QUEUED, ARGV[2]) == 1 then return out end
local longest, started = tonumber(ARGV[4]), tonumber(get('started'))
if longest > 0 and started and get('ending') == '' and now - started * 1000 > longest then
  return {{'overtime', '', ''}}
end
local lively = 0
for _, name in ipairs(redis.call('HKEYS', claims)) do
  local _, expires = read_claim(name)
  if expires > now then
    lively = lively + 1
  else
    local what, stage, index = string.match(name, '^(%a+):?(%-?%d*):?(%d*)$')
    if get('ending') == '' then out[#out + 1] = {what, stage, index} end
    redis.call('HDEL', claims, name)
  end
end
local quiet = now - num('touched') > tonumber(ARGV[1])
if lively == 0 and #out == 0 and quiet then
  local position, sent = num('position'), num('sent')
  if get('ending') ~= '' then
    out[1] = {'close', '', ''}
  elseif position < 0 or (sent >= position and num('units_done') == num('units_total')) then
    out[1] = {'advance', position, ''}
  elseif sent < position then
    out[1] = {'advance', position - 1, ''}
  else
    for i = 0, num('units_total') - 1 do
      if redis.call('HEXISTS', units, 'result:' .. i) == 0 then out[#out + 1] = {'unit', position, i} end
    end
  end
end
if #out > 0 then touch() end
return out
"""
)

CONDEMN: Final = (
    PRELUDE
    + """
-- id, error, format, lifetime -> 1: what makes no sense is gone, and the job is to be closed as one that failed
local was_kept = redis.call('ZSCORE', KEPT, ARGV[1])
if redis.call('SISMEMBER', active, ARGV[1]) == 0 and not was_kept then return 0 end
local old = {}
if redis.call('TYPE', job).ok == 'hash' then
  for _, name in ipairs({'kind', 'request', 'traffic', 'submitter', 'signature', 'format', 'retries'}) do
    old[name] = redis.call('HGET', job, name)
  end
end
if redis.call('TYPE', events).ok ~= 'stream' then redis.call('DEL', events) end
redis.call('DEL', job, claims, units)
redis.call('HSET', job, 'id', ARGV[1], 'kind', old.kind or 'unknown', 'request', old.request or '{}',
  'traffic', old.traffic == 'bulk' and 'bulk' or 'interactive', 'submitter', old.submitter or '',
  'signature', old.signature or '', 'format', tonumber(old.format) and old.format or ARGV[3],
  'retries', tonumber(old.retries) and old.retries or 0, 'state', 'running', 'ending', 'failed', 'error', ARGV[2],
  'submitted', stamp(), 'started', stamp(), 'position', -1, 'sent', -1, 'fence', string.format('%d', now))
redis.call('ZREM', KEPT, ARGV[1])
redis.call('SADD', active, ARGV[1])
redis.call('SREM', QUEUED, ARGV[1])
touch()
event()
keep(ARGV[4])
return 1
"""
)
