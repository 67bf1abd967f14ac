-- id -> {now in ms, 1: the signature has not opened a job before}
local nonce, rest = nonce_and_rest()
if not nonce or rest <= 0 then return {now, 1} end
redis.call('SET', nonce, ARGV[1], 'NX', 'PX', int(rest))
return {now, redis.call('GET', nonce) == ARGV[1] and 1 or 0}
