-- id of the request, attempt or 0 for any, ending, error or '', result or '', claim to release or '', its token, its owner,
-- '1': not when the job commits, lifetime in s -> {status, 1: close now}
local this = 'finish:' .. ARGV[1]
if not exists() then return {'gone', 0} end
if get('by') == this then
  -- The first run may have claimed the close, too.
  local _, holder, lives = claim_of('close')
  return {'ok', lives and holder == ARGV[8] and 1 or due()}
end
if ARGV[2] ~= '0' and tonumber(ARGV[2]) ~= num('attempt') then return {'stale', 0} end
if ARGV[6] ~= '' then
  if not holds(ARGV[6], ARGV[7], ARGV[8]) then return {'stale', due()} end
  redis.call('HDEL', claims, ARGV[6])
end
if final() then return {'over', 0} end
if get('ending') ~= '' then return {'over', due()} end
if ARGV[9] == '1' and get('committing') ~= '' then return {'late', 0} end
spend()
if ARGV[4] ~= '' then redis.call('HSET', job, 'error', ARGV[4]) end
if ARGV[5] ~= '' then redis.call('HSET', job, 'result', ARGV[5]) end
mark(this)
if get('state') == 'queued' then
  -- It never ran, so there is nothing to remove and no need for a worker.
  finish(ARGV[3], ARGV[10])
  return {'ended', 0}
end
redis.call('HSET', job, 'ending', ARGV[3])
moved()
return {'ok', due()}
