-- An ended record in the folder is the trial's: nothing, PENDING, RUNNING -> ended; ended -> ended as a higher record, or that of the very
-- attempt, says, since it was durable first.
-- ARGV  id, stage, group, index, configuration (JSON), attempt, state, result (JSON), highest attempt that left anything in the folder, or 0
-- Reads and writes results HASH.
-- Writes trials HASH, states HASH, pending ZSET, open ZSET, groups HASH, counts HASH, leases ZSET, progress HASH, endings LIST.
-- Returns 1, or 0 where it changes nothing: a later attempt has ended, is running or has begun, or this one was settled by a retry.

local id, stage, group, index, configuration, attempt, state, result, floor = unpack(ARGV)
attempt, floor = tonumber(attempt), tonumber(floor)
local trial = state_of(id)
local at, stored
if not trial then
  if attempt < floor then return 0 end
  trial = { g = queue_for(stage, group), i = tonumber(index), a = attempt }
  redis.call('HSET', TRIALS, id, configuration)
elseif trial.s == 'running' then
  if attempt < trial.a then return 0 end
elseif trial.s == 'pending' then
  if attempt < math.max(trial.a, floor) or attempt <= (trial.f or 0) then return 0 end
else
  stored = redis.call('HGET', RESULTS, id) or ''
  at = tonumber(string.match(stored, '^(%d+) ')) or trial.a
  if attempt < at or stored == whole(attempt) .. ' ' .. result then return 0 end
end
if attempt == at then
  settle(id, trial, state, attempt, result) -- whoever said finish is still told OK, and it stays the same ending
else
  if attempt ~= trial.a then trial.t = nil end -- a lease of this very attempt may still say finish, and is told OK
  trial.y = 'recovered'
  local how = at and conclude or finish
  how(id, trial, state, attempt, result)
end
save()
return 1
