-- id of the request, '1' to restart, lifetime in s -> {'gone', 'not failed', 'busy', 'restart' or 'continue', attempt}
local function answer(how) return {how, num('attempt')} end
if not exists() then return answer('gone') end
for _, how in ipairs({'restart', 'continue'}) do
  if get('by') == 'retry:' .. ARGV[1] .. ':' .. how then return answer(how) end
end
if get('state') ~= 'failed' then return answer('not failed') end
if live() > 0 then return answer('busy') end
local restart = ARGV[2] == '1' or get('kept') == '' or tonumber(get('kept')) <= now
redis.call('HDEL', job, 'error', 'ended', 'kept', 'committing')
redis.call('ZREM', KEPT, get('id'))
redis.call('DEL', claims)
if restart then
  redis.call('DEL', units)
  redis.call('HINCRBY', job, 'attempt', 1)
  redis.call('HSET', job, 'position', -1, 'sent', -1)
  redis.call('HDEL', job, 'flow_state', 'bytes_planned', 'stage', 'stage_number', 'units_done', 'units_total',
    'bytes_done', 'bytes_total', 'commits')
else
  -- A unit that killed its processes gets all its tries again.
  for _, field in ipairs(redis.call('HKEYS', units)) do
    if string.sub(field, 1, 11) == 'deliveries:' then redis.call('HDEL', units, field) end
  end
end
redis.call('HSET', job, 'state', 'running', 'started', stamp())
redis.call('HINCRBY', job, 'retries', 1)
redis.call('SADD', active, get('id'))
mark('retry:' .. ARGV[1] .. ':' .. (restart and 'restart' or 'continue'))
moved()
event()
expire(ARGV[3])
return answer(restart and 'restart' or 'continue')
