-- Ends a trial as a record in the folder says: nothing, PENDING, RUNNING -> ended. An ended trial
-- changes if the record is of a higher attempt, or of the same one, since the record was durable
-- first. A record of a longer budget than Redis knows is of a later rung, and gives the trial that
-- budget. A record of a shorter budget is history.
-- ARGV  id, stage, group, index, configuration (JSON), attempt, state, result (JSON), highest
--       attempt that left anything in the folder or 0, rung
-- A completed record ends a trial that Redis does not know, even if a later attempt has left
-- something in the folder. That attempt was of a longer budget, whose promotion is lost, or would
-- have come to the same end.
-- Reads and writes results HASH. Writes trials HASH, states HASH, pending ZSET, open ZSET,
-- groups HASH, counts HASH, leases ZSET, progress HASH, endings LIST.
-- Returns 1, or 0 if nothing changes: a later attempt has ended, is running or has begun, a retry
-- or a promotion has settled this attempt, or the trial has a longer budget.

local id, stage, group, index, configuration, attempt, state, result, floor, rung = unpack(ARGV)
attempt, floor, rung = tonumber(attempt), tonumber(floor), tonumber(rung)
local trial = state_of(id)
local at, stored
local raises = not trial or (trial.r or 0) < rung
if trial and (trial.r or 0) > rung then return 0 end
if not trial then
  if attempt < floor and state ~= 'completed' then return 0 end
  trial = { g = 0, i = tonumber(index), a = math.max(attempt, floor) }
elseif trial.s == 'running' then
  if attempt < trial.a then return 0 end
elseif trial.s == 'pending' then
  if attempt < math.max(trial.a, floor) or attempt <= (trial.f or 0) then return 0 end
else
  stored = redis.call('HGET', RESULTS, id) or ''
  at = tonumber(string.match(stored, '^(%d+) ')) or trial.a
  if attempt < at or (stored == whole(attempt) .. ' ' .. result and not raises) then return 0 end
end
-- made before anything changes: a worker's user may not be allowed to
local queue = raises and queue_for(stage, group, rung)
if not trial.s then trial.g = queue end
if attempt == at then
  -- a holder that reported finish still gets OK, and it remains the same ending
  settle(id, trial, state, attempt, result)
else
  -- a lease of this very attempt may still report finish, and gets OK
  if attempt ~= trial.a then trial.t = nil end
  trial.y = 'recovered'
  local how = at and conclude or finish
  how(id, trial, state, attempt, result)
end
-- only now, after the trial has left the queue that it waited in
if raises then
  redis.call('HSET', TRIALS, id, configuration)
  trial.g, trial.r = queue, rung > 0 and rung or nil
end
save()
return 1
