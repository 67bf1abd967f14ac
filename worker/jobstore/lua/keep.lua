-- token of the claim 'close', owner, seconds for which the work of the failed job is kept, lifetime in s -> status;
-- 'over': there is nothing worth keeping
local this = 'keep:' .. ARGV[1]
if not exists() then return 'gone' end
if get('by') == this then return 'ok' end
if not holds('close', ARGV[1], ARGV[2]) then return 'stale' end
if get('ending') ~= 'failed' then return 'over' end
if num('position') < 1 and num('units_done') == 0 then return 'over' end
local until_ = now + 1000 * ARGV[3]
redis.call('HSET', job, 'state', 'failed', 'ended', stamp(), 'kept', int(until_))
redis.call('HDEL', job, 'ending', 'touched', 'recoveries', 'committing')
redis.call('DEL', claims)
redis.call('SREM', active, get('id'))
redis.call('ZADD', KEPT, int(until_), get('id'))
mark(this)
event()
expire(ARGV[4])
return 'ok'
