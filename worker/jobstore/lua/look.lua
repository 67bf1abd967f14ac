-- id, quiet ms after which a job without a claim is stuck, '1': every waiting job has its message, ms that a job may
-- take or 0 -> attempt, reason, then lists {what, stage, index} that must be sent again
local out = {}
if not exists() or final() then
  if not exists() then redis.call('DEL', claims, events, units) end
  redis.call('SREM', active, ARGV[1])
  redis.call('SREM', QUEUED, ARGV[1])
  return {0, ''}
end
local attempt = num('attempt')
if ARGV[3] == '1' and redis.call('SISMEMBER', QUEUED, ARGV[1]) == 1 then return {attempt, ''} end
local longest, started = tonumber(ARGV[4]), tonumber(get('started'))
if started and started * 1000 > now then -- by a clock that was set back since
  started = now / 1000
  redis.call('HSET', job, 'started', stamp())
end
if longest > 0 and started and get('ending') == '' and get('committing') == '' and now - started * 1000 > longest then
  return {attempt, 'overtime'}
end
local lively, reason = 0, ''
for _, name in ipairs(redis.call('HKEYS', claims)) do
  local _, _, lives = claim_of(name)
  if lives then
    lively = lively + 1
  else
    -- Its holder was silent for as long as its lease.
    local what, stage, index = string.match(name, '^(%a+):?(%-?%d*):?(%d*)$')
    if get('ending') == '' then out[#out + 1] = {what, stage, index} end
    redis.call('HDEL', claims, name)
    reason = 'lease ran out'
  end
end
if num('touched') > now then touch() end -- by a clock that was set back since
-- After each attempt in vain, the next one comes later.
local quiet = now - num('touched') > tonumber(ARGV[2]) * 2 ^ math.min(num('recoveries'), 6)
if lively == 0 and #out == 0 and quiet then
  local position, sent = num('position'), num('sent')
  reason = 'message lost'
  if get('ending') ~= '' then
    out[1] = {'close', '', ''}
  elseif position < 0 or (sent >= position and complete() == 1) then
    out[1] = {'advance', position, ''}
  elseif sent < position then
    out[1] = {'advance', position - 1, ''}
  else
    for i = 0, num('units_total') - 1 do
      local waits = redis.call('HGET', units, 'waits:unit:' .. position .. ':' .. i)
      local done = redis.call('HEXISTS', units, 'result:' .. i) == 1
      if not done and not (waits and tonumber(waits) > now) then out[#out + 1] = {'unit', position, i} end
    end
  end
  if #out > 0 then redis.call('HINCRBY', job, 'recoveries', 1) end
end
if #out > 0 then touch() end
return {attempt, reason, unpack(out)}
