-- id, kind, request, stages, lifetime in s, traffic class, submitter, format, most queued (0: any number), signature or
-- '', all jobs' key -> 'accepted' or 'full'
if get('id') == ARGV[1] then return 'accepted' end
local most = tonumber(ARGV[9])
if most > 0 and redis.call('SCARD', QUEUED) >= most then return 'full' end
-- The first write: a user of Redis that may only operate the farm is refused here, and nothing of the job is left.
local line = WAITING .. ARGV[6] .. ':' .. ARGV[7]
if redis.call('RPUSH', line, ARGV[1]) == 1 then redis.call('RPUSH', TURNS .. ARGV[6], ARGV[7]) end
redis.call('HSET', job, 'id', ARGV[1], 'kind', ARGV[2], 'request', ARGV[3], 'state', 'queued', 'attempt', 1,
  'stages', ARGV[4], 'submitted', stamp(), 'position', -1, 'sent', -1,
  'traffic', ARGV[6], 'submitter', ARGV[7], 'format', ARGV[8])
if ARGV[10] ~= '' then redis.call('HSET', job, 'signature', ARGV[10]) end
redis.call('SADD', active, ARGV[1])
redis.call('SADD', QUEUED, ARGV[1])
redis.call('EXPIRE', line, ARGV[5])
redis.call('EXPIRE', TURNS .. ARGV[6], ARGV[5])
redis.call('ZADD', JOBS, int(now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', JOBS, '-inf', int(now - 2000 * ARGV[5]))
touch()
-- No event: the record shows that it waits, and a stream takes 4 KiB from its first one on.
expire(ARGV[5])
return 'accepted'
