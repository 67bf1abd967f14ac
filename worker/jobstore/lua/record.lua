-- name, token, owner, index, result, cost in bytes -> {status, 1: the stage is complete, 1: close now}
local index = ARGV[4]
if not exists() then return {'gone', 0, 0} end
if final() then return {'over', 0, 0} end
if not holds(ARGV[1], ARGV[2], ARGV[3]) then
  if redis.call('HGET', units, 'token:' .. index) == ARGV[2] then return {'ok', complete(), due()} end
  return {'stale', 0, due()}
end
redis.call('HDEL', claims, ARGV[1])
if get('ending') ~= '' then return {'over', 0, due()} end
redis.call('HSET', units, 'result:' .. index, ARGV[5], 'token:' .. index, ARGV[2])
redis.call('HINCRBY', job, 'units_done', 1)
set_bytes(index, tonumber(ARGV[6]))
moved()
event()
return {'ok', complete(), 0}
