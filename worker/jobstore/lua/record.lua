-- name, token, owner, index, result, cost in bytes -> {status, 1: close now, 1: the stage is complete}
local index = ARGV[4]
if not exists() then return {'gone', 0, 0} end
if final() then return {'over', 0, 0} end
if not holds(ARGV[1], ARGV[2], ARGV[3]) then
  if redis.call('HGET', units, 'token:' .. index) == ARGV[2] then return {'ok', due(), complete()} end
  return {'stale', due(), 0}
end
redis.call('HDEL', claims, ARGV[1])
if get('ending') ~= '' then return {'over', due(), 0} end
redis.call('HSET', units, 'result:' .. index, ARGV[5], 'token:' .. index, ARGV[2])
redis.call('HINCRBY', job, 'units_done', 1)
set_bytes(index, tonumber(ARGV[6]))
moved()
event()
return {'ok', 0, complete()}
