-- name, token, result or '', lifetime in s -> the subscribers
local woken = work .. ':woken:' .. ARGV[2]
if claim_in(work, 'claim') ~= tonumber(ARGV[2]) then return redis.call('SMEMBERS', woken) end
redis.call('HDEL', work, 'claim')
redis.call('SREM', WORKS, name)
if ARGV[3] ~= '' then
  redis.call('HSET', work, 'result', ARGV[3])
  redis.call('EXPIRE', work, ARGV[4])
end
return wake(work, woken)
