-- Takes a stuck trial from its holder, which counts as a loss: RUNNING -> PENDING as a suspect, or
-- FAILED at the limit.
-- ARGV  id, attempt, token, limit of losses while alone
-- Reads progress HASH. Writes states HASH, pending ZSET, open ZSET, counts HASH, leases ZSET,
-- progress HASH, results HASH, endings LIST.
-- Returns {attempt, state, worker, result or ""}; nil if the fence is stale.

local id, attempt, token, limit = unpack(ARGV)
local trial = state_of(id)
if not holds(trial, attempt, token) then return nil end
local verdict = lose(id, trial, 'stuck', tonumber(limit))
save()
return verdict
