-- Ends a trial for good: PENDING or RUNNING -> KILLED, under the next attempt number.
-- ARGV  id, reason; to kill it only under one fence, also attempt and token
-- Writes states HASH, pending ZSET, open ZSET, counts HASH, leases ZSET, progress HASH,
-- results HASH, endings LIST.
-- Returns {attempt, state, previous holder or "", result}; nil if it has ended, is unknown, or the
-- fence is stale.

local id, reason, attempt, token = unpack(ARGV)
local trial = state_of(id)
if not trial or (trial.s ~= 'pending' and trial.s ~= 'running') then return nil end
if attempt and not holds(trial, attempt, token) then return nil end
local verdict = condemn(id, trial, 'killed', 'killed', reason)
save()
return verdict
