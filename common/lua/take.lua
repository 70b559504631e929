-- Takes a straggling trial from its holder: RUNNING -> PENDING, or FAILED where being stuck is one loss too many.
-- ARGV  id, attempt, token, "stuck" (a suspect now, counts like a loss) or "slow" (goes to another worker, never counts), most losses while alone
-- Writes states HASH, pending ZSET, open ZSET, counts HASH, leases ZSET, progress HASH, results HASH, endings LIST.
-- Returns {attempt, state, worker, result or ""}, nil if the fence is stale.

local id, attempt, token, why, limit = unpack(ARGV)
local trial = state_of(id)
if not holds(trial, attempt, token) then return nil end
local verdict
if why == 'stuck' then
  verdict = lose(id, trial, why, tonumber(limit))
else
  trial.t, trial.y, trial.v = nil, why, trial.w
  requeue(id, trial)
  verdict = { trial.a, 'pending', trial.w, '' }
end
save()
return verdict
