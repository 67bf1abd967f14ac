-- ms until they are returned again -> {id, attempt} of failed jobs whose retention has ended
silence()
local out = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEPT, '-inf', int(now), 'LIMIT', 0, 100)) do
  local attempt = redis.call('HGET', PREFIX .. 'job:' .. id, 'attempt')
  if attempt then
    redis.call('ZADD', KEPT, int(now + ARGV[1]), id)
    out[#out + 1] = {id, tonumber(attempt)}
  else
    redis.call('ZREM', KEPT, id)
  end
end
return out
