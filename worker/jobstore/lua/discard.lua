-- -> attempt whose work must be removed now, 0: nothing is kept
if get('kept') == '' then return 0 end
redis.call('HSET', job, 'kept', 0)
redis.call('ZADD', KEPT, 0, get('id'))
return num('attempt')
