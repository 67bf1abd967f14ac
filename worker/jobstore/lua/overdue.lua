-- ms until they are returned again -> {id, attempt} of failed jobs whose retention has ended
silence()
local out = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEPT, '-inf', int(now), 'LIMIT', 0, 100)) do
  local found = redis.pcall('HGET', PREFIX .. 'job:' .. id, 'attempt')
  local attempt = type(found) == 'string' and tonumber(found)
  if attempt then
    redis.call('ZADD', KEPT, int(now + ARGV[1]), id)
    out[#out + 1] = {id, attempt}
  else -- expired, or no job
    redis.call('ZREM', KEPT, id)
  end
end
return out
