-- Adds the trials that are not there yet: nothing -> PENDING. Idempotent.
-- ARGV  JSON array with a row per trial: id, stage, group, index, highest attempt number known, configuration (JSON)
-- Writes trials HASH, states HASH, pending ZSET, open ZSET, groups HASH, counts HASH.
-- Returns how many were new. One that is pending already only has its attempt number raised; one whose state is damaged is left to claim and tick.

local rows, added = cjson.decode(ARGV[1]), 0
local states = fields(STATES, column(rows, 1))

for n, row in ipairs(rows) do
  local id, stage, group, index, attempt, configuration = unpack(row)
  local trial = changed[id] or state_in(states[n])
  if not trial and not states[n] then
    redis.call('HSET', TRIALS, id, configuration) -- first: whose user may not add trials is refused before anything has changed
    enqueue(id, { g = queue_for(stage, group), i = index, a = attempt })
    added = added + 1
  elseif trial and trial.s == 'pending' and trial.a < attempt then
    trial.a = attempt
    changed[id] = trial
  end
end
save()
return added
