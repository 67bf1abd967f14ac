-- name, result that is no longer valid
if redis.call('HGET', work, 'result') == ARGV[2] then redis.call('HDEL', work, 'result') end
