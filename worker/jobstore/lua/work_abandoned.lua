-- '' -> the subscribers of work whose claim has expired
local out = {}
for _, each in ipairs(redis.call('SMEMBERS', WORKS)) do
  local _, _, lives = claim_in(WORK .. each, 'claim')
  if not lives then
    redis.call('SREM', WORKS, each)
    for _, subscriber in ipairs(wake(WORK .. each, WORK .. each .. ':woken:')) do out[#out + 1] = subscriber end
  end
end
return out
