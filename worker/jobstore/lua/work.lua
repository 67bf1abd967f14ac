-- Beginning of every script of equal work, after claims.lua. ARGV[1]: name of the work.
local name = ARGV[1]
local work, waiting = WORK .. name, WORK .. name .. ':waiting'
-- The subscribers of work. They are returned again if the script is run again because its reply was lost.
local function wake(key, woken)
  if redis.call('EXISTS', key .. ':waiting') == 1 then
    redis.call('RENAME', key .. ':waiting', woken)
    redis.call('EXPIRE', woken, 60)
  end
  return redis.call('SMEMBERS', woken)
end
