-- name, token, owner, position, name of the stage, '1': it commits, flow state, bytes in all, lifetime,
-- '1': the holder does the only unit, each unit -> status; releases the claim if nothing has to be sent
local this = 'open:' .. ARGV[4] .. ':' .. ARGV[2]
if not exists() then return 'gone' end
if get('by') == this then return 'ok' end
if not holds(ARGV[1], ARGV[2], ARGV[3]) then return 'stale' end
if get('ending') ~= '' then return 'over' end
if num('position') >= tonumber(ARGV[4]) then return 'stale' end
if num('position') < 0 then spend() end
redis.call('HINCRBY', job, 'bytes_planned', ARGV[8])
redis.call('DEL', units)
redis.call('HSET', job, 'position', ARGV[4], 'stage', ARGV[5], 'stage_number', ARGV[4] + 1,
  'flow_state', ARGV[7], 'units_done', 0, 'units_total', #ARGV - 10, 'bytes_done', 0, 'bytes_total', ARGV[8])
if ARGV[6] == '1' then redis.call('HSET', job, 'commits', ARGV[4]) end
for i = 11, #ARGV do redis.call('HSET', units, 'unit:' .. (i - 11), ARGV[i]) end
if ARGV[10] == '1' then
  redis.call('HSET', job, 'sent', ARGV[4])
  redis.call('HDEL', claims, ARGV[1])
end
mark(this)
moved()
event()
expire(ARGV[9])
return 'ok'
