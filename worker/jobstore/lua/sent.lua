-- name, token, owner, position whose units are on the queue -> {status, 1: close now}; releases the claim
if not exists() then return {'gone', 0} end
if not holds(ARGV[1], ARGV[2], ARGV[3]) then return {num('sent') >= tonumber(ARGV[4]) and 'ok' or 'stale', due()} end
redis.call('HDEL', claims, ARGV[1])
if num('sent') < tonumber(ARGV[4]) then redis.call('HSET', job, 'sent', ARGV[4]) end
touch()
return {'ok', due()}
