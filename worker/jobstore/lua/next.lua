-- id and attempt of the job whose first message this is, lifetime in s, owner -> {id, attempt} of the job to begin
--
-- There are as many messages as waiting jobs, and each begins a job of the submitter whose turn it is; so does the
-- message of a job that another message has begun or is beginning. A job that neither waits nor begins was taken by a
-- process that died before: it begins by its own message.
local waits = redis.call('SISMEMBER', QUEUED, ARGV[1]) == 1
local traffic = get('traffic')
local function is_begun()
  if final() or num('position') >= 0 then return true end
  local _, _, lives = claim_of('advance:-1')
  local when, who = string.match(get('taken'), '^(%d+) (.*)$')
  -- Taken, and not yet claimed; the age is valid if the clock was not set back.
  return lives or (who and who ~= ARGV[4] and math.abs(now - tonumber(when)) < 1000)
end
if not waits and (traffic == '' or not is_begun()) then return {ARGV[1], tonumber(ARGV[2])} end
while true do
  local who = redis.call('LPOP', TURNS .. traffic)
  if not who then break end
  local line = WAITING .. traffic .. ':' .. who
  local id = redis.call('LPOP', line)
  if redis.call('LLEN', line) > 0 then
    redis.call('RPUSH', TURNS .. traffic, who)
    redis.call('EXPIRE', TURNS .. traffic, ARGV[3])
  end
  if id and redis.call('SREM', QUEUED, id) == 1 and redis.call('EXISTS', PREFIX .. 'job:' .. id) == 1 then
    redis.call('HSET', PREFIX .. 'job:' .. id, 'taken', int(now) .. ' ' .. ARGV[4])
    return {id, tonumber(redis.call('HGET', PREFIX .. 'job:' .. id, 'attempt') or '1')}
  end
end
redis.call('SREM', QUEUED, ARGV[1])
return {ARGV[1], tonumber(ARGV[2])}
