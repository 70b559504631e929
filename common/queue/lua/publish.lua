-- Adds the trials that are not there yet: nothing -> PENDING. Idempotent.
-- ARGV  JSON array with a row per trial: id, stage, group, index, highest attempt number known,
--       configuration (JSON), rung
-- Writes trials HASH, states HASH, pending ZSET, open ZSET, groups HASH, counts HASH.
-- Returns the number of new trials. A trial that is pending already only gets a higher attempt
-- number. Its budget does not change, which only promote does. Damaged states are left to claim
-- and tick.

local rows, added = cjson.decode(ARGV[1]), 0
local states = fields(STATES, column(rows, 1))

for n, row in ipairs(rows) do
  local id, stage, group, index, attempt, configuration, rung = unpack(row)
  local trial = changed[id] or state_in(states[n])
  if not trial and not states[n] then
    -- this comes first: a user who may not add trials is refused before anything has changed
    redis.call('HSET', TRIALS, id, configuration)
    enqueue(id, { g = queue_for(stage, group, rung), i = index, a = attempt, r = rung > 0 and rung or nil })
    added = added + 1
  elseif trial and trial.s == 'pending' and trial.a < attempt then
    trial.a = attempt
    changed[id] = trial
  end
end
save()
return added
