-- name, token, owner -> {status, position, the indexes of the units that are neither done nor in progress}
if not exists() then return {'gone'} end
if not holds(ARGV[1], ARGV[2], ARGV[3]) then return {'stale'} end
local out = {'ok', num('position')}
for i = 0, num('units_total') - 1 do
  local _, _, lives = claim_of('unit:' .. num('position') .. ':' .. i)
  if redis.call('HEXISTS', units, 'result:' .. i) == 0 and not lives then out[#out + 1] = i end
end
return out
