-- name, subscriber, lifetime in s -> 0: there is nothing left to wait for
local _, _, lives = claim_in(work, 'claim')
if redis.call('HEXISTS', work, 'result') == 1 or not lives then return 0 end
redis.call('SADD', waiting, ARGV[2])
redis.call('EXPIRE', waiting, ARGV[3])
return 1
