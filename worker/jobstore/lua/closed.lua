-- token of the claim 'close' or '' to close without one, owner, attempt, lifetime in s, '1': all is clean, ms until
-- cleaning is retried -> status
local this = 'closed:' .. ARGV[1]
if not exists() then return 'gone' end
if ARGV[1] ~= '' and get('by') == this then return 'ok' end
if tonumber(ARGV[3]) ~= num('attempt') then return 'stale' end
if get('kept') == '' and (final() or get('ending') == '') then return 'over' end
if ARGV[1] ~= '' and not holds('close', ARGV[1], ARGV[2]) then return 'stale' end
local again = ARGV[5] ~= '1' and final()
if again then redis.call('DEL', claims, units) else finish(get('ending'), ARGV[4]) end
if ARGV[5] ~= '1' then
  redis.call('HSET', job, 'kept', 0)
  redis.call('ZADD', KEPT, int(now + ARGV[6]), get('id'))
end
mark(this)
return 'ok'
