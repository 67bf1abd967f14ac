-- name, token, lease in ms -> 1: still held
local token, holder = claim_in(work, 'claim')
if token ~= tonumber(ARGV[2]) then return 0 end
hold_in(work, 'claim', token, tonumber(ARGV[3]), holder)
return 1
