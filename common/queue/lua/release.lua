-- The holder gives trials back: RUNNING -> PENDING. This is never a loss. The same message again
-- gets the same answer.
-- ARGV  JSON array with a row per trial: id, attempt, token
-- Writes states HASH, pending ZSET, open ZSET, counts HASH, leases ZSET, progress HASH.
-- Returns a string with, per trial, 1 (given back) or 0 (the fence is stale).

local verdicts = {}
for _, row in ipairs(cjson.decode(ARGV[1])) do
  local id, attempt, token = unpack(row)
  local trial = changed[id] or state_in(redis.call('HGET', STATES, id))
  if holds(trial, attempt, token) then
    trial.y = 'released'
    requeue(id, trial)
    verdicts[#verdicts + 1] = 1
  else
    local given = trial and trial.s == 'pending' and trial.y == 'released'
    verdicts[#verdicts + 1] = given and trial.a == attempt and trial.t == token and 1 or 0
  end
end
save()
return table.concat(verdicts)
