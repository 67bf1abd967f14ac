-- name, result that does not hold any more
if redis.call('HGET', work, 'result') == ARGV[2] then redis.call('HDEL', work, 'result') end
