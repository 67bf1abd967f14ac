-- id, error, format, lifetime in s -> attempt of the job, to be closed as failed; 0: its record is sound
--
-- For a corrupt record, judged only here: a worker that does not understand a record does not make it corrupt.
local function is(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end
local function sound()
  if not (is(job, 'hash') and is(claims, 'hash') and is(units, 'hash') and is(events, 'stream')) then return false end
  if not exists() then return false end
  for _, name in ipairs({'attempt', 'position', 'sent', 'fence', 'units_done', 'units_total', 'bytes_done',
    'bytes_total', 'bytes_planned', 'retries', 'touched', 'recoveries', 'commits', 'kept', 'format', 'stages'}) do
    local value = redis.call('HGET', job, name)
    if value and not string.match(value, '^%-?%d+$') then return false end
  end
  local state, traffic, ending = get('state'), get('traffic'), get('ending')
  if not (state == 'queued' or state == 'running' or final()) then return false end
  if not (ending == '' or ending == 'succeeded' or ending == 'failed' or ending == 'cancelled') then return false end
  if not (traffic == 'interactive' or traffic == 'bulk') or get('attempt') == '' then return false end
  if get('kind') == '' or not redis.call('HGET', job, 'request') then return false end
  local function json(text) return (pcall(cjson.decode, text)) end
  for _, name in ipairs({'error', 'result', 'flow_state'}) do
    local value = get(name)
    if value ~= '' and not json(value) then return false end
  end
  for _, value in ipairs(redis.call('HVALS', claims)) do
    if not string.match(value, '^%d+ %d+ %d+ [^/]*/%d+/%d+$') then return false end
  end
  local fields = redis.call('HGETALL', units)
  for i = 1, #fields, 2 do
    local what = string.match(fields[i], '^(%a+):')
    local numeric = what == 'bytes' or what == 'deliveries' or what == 'waits' or what == 'token'
    if numeric and not string.match(fields[i + 1], '^%-?%d+$') then return false end
    if (what == 'unit' or what == 'result') and not json(fields[i + 1]) then return false end
  end
  if get('position') ~= '-1' then
    for i = 0, num('units_total') - 1 do
      if final() then break end
      if redis.call('HEXISTS', units, 'unit:' .. i) == 0 then return false end
    end
  end
  return true
end
local was_kept = redis.call('ZSCORE', KEPT, ARGV[1])
if redis.call('SISMEMBER', active, ARGV[1]) == 0 and not was_kept then return 0 end
if sound() then return 0 end
local old = {}
if redis.call('TYPE', job).ok == 'hash' then
  for _, name in ipairs({'kind', 'request', 'traffic', 'submitter', 'signature', 'format', 'retries', 'attempt'}) do
    old[name] = redis.call('HGET', job, name)
  end
end
if not is(events, 'stream') then redis.call('DEL', events) end
redis.call('DEL', job, claims, units)
local attempt = tonumber(old.attempt) and old.attempt or 1
redis.call('HSET', job, 'id', ARGV[1], 'kind', old.kind or 'unknown', 'request', old.request or '{}',
  'traffic', old.traffic == 'bulk' and 'bulk' or 'interactive', 'submitter', old.submitter or '',
  'signature', old.signature or '', 'format', tonumber(old.format) and old.format or ARGV[3], 'attempt', attempt,
  'retries', tonumber(old.retries) and old.retries or 0, 'state', 'running', 'ending', 'failed', 'error', ARGV[2],
  'submitted', stamp(), 'started', stamp(), 'position', -1, 'sent', -1, 'fence', int(now))
redis.call('ZREM', KEPT, ARGV[1])
redis.call('SADD', active, ARGV[1])
redis.call('SREM', QUEUED, ARGV[1])
moved()
event()
expire(ARGV[4])
return tonumber(attempt)
