-- count of the arguments of an operation, these, those of claim.lua -> {the operation's answer, claim's answer or {}}
--
-- The body of a script that does an operation, `operate`, and claims what follows it, in one request. What follows is
-- there if the answer is 'ok' alone or ends with a 1: the stage is open or complete, the job can be closed.
local count = tonumber(ARGV[1])
local done = operate({unpack(ARGV, 2, count + 1)})
local follows = done == 'ok' or type(done) == 'table' and done[1] == 'ok' and done[#done] == 1
return {done, follows and claim({unpack(ARGV, count + 2)}) or {}}
