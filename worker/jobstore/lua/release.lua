-- name, token, owner, '1': the try counts as a delivery, ms for which it waits for equal work or 0
-- -> {status, 1: close now}
if not exists() then return {'gone', 0} end
if not holds(ARGV[1], ARGV[2], ARGV[3]) then return {'stale', due()} end
redis.call('HDEL', claims, ARGV[1])
if ARGV[4] ~= '1' then redis.call('HINCRBY', units, 'deliveries:' .. ARGV[1], -1) end
if tonumber(ARGV[5]) > 0 then redis.call('HSET', units, 'waits:' .. ARGV[1], int(now + ARGV[5])) end
return {'ok', due()}
