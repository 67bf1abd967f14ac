-- name, owner, lease in ms, owner known to be dead, lifetime in s -> {'done', result}, {'busy', holder} or {'ok', token}
local result = redis.call('HGET', work, 'result')
if result then return {'done', result} end
local token, holder, lives = claim_in(work, 'claim')
if lives and holder ~= ARGV[4] and holder ~= ARGV[2] then return {'busy', holder} end
if not (lives and holder == ARGV[2]) then token = redis.call('HINCRBY', work, 'executions', 1) end
hold_in(work, 'claim', token, tonumber(ARGV[3]), ARGV[2])
redis.call('EXPIRE', work, ARGV[5])
redis.call('SADD', WORKS, name)
return {'ok', token}
