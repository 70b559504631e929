-- An ended record in the folder is the trial's: nothing, PENDING or RUNNING -> ended.
-- ARGV  id, stage, group, index, configuration (JSON), attempt, state, result (JSON)
-- Writes trials HASH, states HASH, pending ZSET, open ZSET, groups HASH, counts HASH, leases ZSET, progress HASH, results HASH, endings LIST.
-- Returns 1, or 0 if the trial has ended, a later attempt is running, or the attempt was settled by a retry.

local id, stage, group, index, configuration, attempt, state, result = unpack(ARGV)
attempt = tonumber(attempt)
local trial = state_of(id)
if not trial then
  trial = { g = queue_for(stage, group), i = tonumber(index), a = attempt }
  redis.call('HSET', TRIALS, id, configuration)
elseif trial.s == 'running' then
  if attempt < trial.a then return 0 end
elseif trial.s ~= 'pending' or attempt <= (trial.f or 0) then
  return 0
end
if attempt ~= trial.a then trial.t = nil end -- a lease of this very attempt may still say finish, and is told OK
trial.y = 'recovered'
finish(id, trial, state, attempt, result)
save()
return 1
