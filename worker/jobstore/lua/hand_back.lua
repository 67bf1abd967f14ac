-- owners that were stopped -> attempt, then lists {what, stage, index} of what they had begun; those tries do not count
local out = {num('attempt')}
local stopped = {}
for _, owner in ipairs(ARGV) do stopped[owner] = true end
for _, name in ipairs(redis.call('HKEYS', claims)) do
  local _, owner = claim_of(name)
  if stopped[owner] then
    out[#out + 1] = {string.match(name, '^(%a+):?(%-?%d*):?(%d*)$')}
    redis.call('HDEL', claims, name)
    redis.call('HINCRBY', units, 'deliveries:' .. name, -1)
  end
end
return out
