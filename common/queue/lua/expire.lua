-- Takes a trial from a holder whose lease has run out: RUNNING -> PENDING as a suspect, or FAILED
-- at the limit.
-- ARGV  id, attempt, token, limit of losses while alone, lease (ms), how its worker ended or ""
-- Reads meta HASH, progress HASH. Writes states HASH, pending ZSET, open ZSET, counts HASH,
-- leases ZSET, progress HASH, results HASH, endings LIST.
-- Returns {attempt, state, worker, result or ""}; nil if the fence is stale, the lease was renewed,
-- or there was an outage after the last tick.

local id, attempt, token, limit, lease, how = unpack(ARGV)
local trial, now = state_of(id), now_ms()
if not holds(trial, attempt, token) then return nil end
if tonumber(redis.call('ZSCORE', LEASES, id)) >= now then return nil end
if now - tonumber(redis.call('HGET', META, 'tick') or 0) > tonumber(lease) / 2 then return nil end
local verdict = lose(id, trial, 'expired', tonumber(limit), how)
save()
return verdict
