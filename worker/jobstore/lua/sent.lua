-- name, token, owner, position whose units are on the queue -> status; gives the claim back
if not exists() then return 'gone' end
if not holds(ARGV[1], ARGV[2], ARGV[3]) then return num('sent') >= tonumber(ARGV[4]) and 'ok' or 'stale' end
redis.call('HDEL', claims, ARGV[1])
if num('sent') < tonumber(ARGV[4]) then redis.call('HSET', job, 'sent', ARGV[4]) end
touch()
return 'ok'
