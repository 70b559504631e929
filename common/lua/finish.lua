-- The holder's last word: RUNNING -> an ended state. The same word by the accepted fence again is OK again.
-- ARGV  JSON array with a row per trial: id, attempt, token, state, result (JSON)
-- Writes states HASH, counts HASH, leases ZSET, progress HASH, results HASH, endings LIST.
-- Returns a string with, per trial, 1 (accepted) or 0 (the fence is stale).

local rows, verdicts = cjson.decode(ARGV[1]), {}
local states = fields(STATES, column(rows, 1))

for n, row in ipairs(rows) do
  local id, attempt, token, state, result = unpack(row)
  local trial = changed[id] or (states[n] and cjson.decode(states[n]))
  if holds(trial, attempt, token) then
    trial.y = 'ended'
    finish(id, trial, state, trial.a, result)
    verdicts[n] = 1
  else
    local over = trial and trial.s ~= 'pending' and trial.s ~= 'running'
    verdicts[n] = over and trial.a == attempt and trial.t == token and 1 or 0
  end
end
save()
return table.concat(verdicts)
