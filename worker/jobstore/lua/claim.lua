-- name, attempt, stage, index ('' if no unit), owner, lease in ms, most deliveries, owner known to be dead
-- -> {status, 1: something must be sent, holder}, or {'ok', token, unit or '', the job's fields, results of a stage to join}
local name, attempt, stage, index, owner = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local lease = tonumber(ARGV[6])
if not exists() then return {'gone', 0, ''} end
if attempt ~= num('attempt') then return {'stale', 0, ''} end
local ending, kept, position = get('ending'), get('kept'), num('position')
-- The kept work of a failed job is removed under the claim to close it.
local removes = name == 'close' and kept ~= '' and tonumber(kept) <= now
if final() and not removes then return {'over', 0, ''} end
local token, holder, lives = claim_of(name)
if ending ~= '' and name ~= 'close' then
  if token and (not lives or holder == ARGV[8]) then redis.call('HDEL', claims, name) end
  return {'over', due(), ''}
end
-- A stray copy of the message must not remove what a running job has staged.
if name == 'close' and ending == '' and not removes then return {'stale', 0, ''} end
local unit = ''
local joins = false
if index ~= '' then
  if stage ~= position then return {'stale', 0, ''} end
  if redis.call('HEXISTS', units, 'result:' .. index) == 1 then return {'done', complete(), ''} end
  unit = redis.call('HGET', units, 'unit:' .. index)
  if not unit then return {'stale', 0, ''} end
elseif name ~= 'close' then
  -- Useful: the first one, the one that joins a complete stage, the one that sends units not sent yet.
  local unsent = stage < position and num('sent') < position
  joins = stage == position and (position < 0 or complete() == 1)
  if not unsent and not joins then return {'stale', 0, ''} end
end
if lives and holder ~= ARGV[8] and holder ~= owner then return {'busy', 0, holder} end
if not (lives and holder == owner) then
  local deliveries = redis.call('HINCRBY', units, 'deliveries:' .. name, 1)
  if deliveries > tonumber(ARGV[7]) then
    redis.call('HDEL', claims, name)
    return {'poison', 0, ''}
  end
  token = redis.call('HINCRBY', job, 'fence', 1)
end
hold(name, token, lease, owner)
redis.call('HDEL', units, 'waits:' .. name)
touch()
if get('state') == 'queued' then
  redis.call('HSET', job, 'state', 'running', 'started', stamp())
  event()
end
if index ~= '' then
  set_bytes(index, 0)
  if get('commits') == int(stage) then redis.call('HSET', job, 'committing', 1) end
end
local fields = redis.call('HMGET', job, unpack(VIEW))
for i = 1, #VIEW do fields[i] = fields[i] or '' end
local results = {}
if joins and position >= 0 then
  for i = 0, num('units_total') - 1 do results[i + 1] = redis.call('HGET', units, 'result:' .. i) end
end
return {'ok', token, unit, fields, results}
