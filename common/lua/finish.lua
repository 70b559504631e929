-- The holder's last word: RUNNING -> an ended state. The same word by the accepted fence again is OK again.
-- ARGV  per trial: id, attempt, token, state, result (JSON)
-- Writes states HASH, counts HASH, leases ZSET, progress HASH, results HASH, endings LIST.
-- Returns per trial 1 (accepted) or 0 (the fence is stale).

local ids, verdicts = {}, {}
for first = 1, #ARGV, 5 do ids[#ids + 1] = ARGV[first] end
local states = fields(STATES, ids)

for n, id in ipairs(ids) do
  local _, attempt, token, state, result = unpack(ARGV, 5 * n - 4, 5 * n)
  local trial = changed[id] or (states[n] and cjson.decode(states[n]))
  if holds(trial, attempt, token) then
    trial.y = 'ended'
    finish(id, trial, state, trial.a, result)
    verdicts[n] = 1
  else
    local over = trial and trial.s ~= 'pending' and trial.s ~= 'running'
    verdicts[n] = over and trial.a == tonumber(attempt) and trial.t == token and 1 or 0
  end
end
save()
return verdicts
