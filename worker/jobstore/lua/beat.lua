-- name, token, owner, lease in ms, index ('' if no unit), bytes done in all -> status
if not exists() then return 'gone' end
if not holds(ARGV[1], ARGV[2], ARGV[3]) then return 'stale' end
hold(ARGV[1], ARGV[2], tonumber(ARGV[4]), ARGV[3])
touch()
if ARGV[5] ~= '' and set_bytes(ARGV[5], tonumber(ARGV[6])) then event() end
if get('ending') ~= '' and ARGV[1] ~= 'close' then return 'over' end
return 'ok'
