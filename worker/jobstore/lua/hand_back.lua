-- '1': their tries count, owners that were stopped or are dead -> attempt, then lists {what, stage, index} of what they
-- had begun
local out = {num('attempt')}
local stopped = {}
for i = 2, #ARGV do stopped[ARGV[i]] = true end
for _, name in ipairs(redis.call('HKEYS', claims)) do
  local _, owner = claim_of(name)
  if stopped[owner] then
    out[#out + 1] = {string.match(name, '^(%a+):?(%-?%d*):?(%d*)$')}
    redis.call('HDEL', claims, name)
    if ARGV[1] == '' then redis.call('HINCRBY', units, 'deliveries:' .. name, -1) end
  end
end
return out
