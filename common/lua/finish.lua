-- The holder's last word: RUNNING -> an ended state. The same word by the accepted fence again is OK again.
-- ARGV  JSON array with a row per trial: id, attempt, token, state, result (JSON)
-- Reads machines HASH; writes states HASH, counts HASH, leases ZSET, progress HASH, results HASH, endings LIST, doubts HASH.
-- Returns a string with, per trial, 1 (accepted) or 0 (the fence is stale).

local rows, verdicts = cjson.decode(ARGV[1]), {}
local states = fields(STATES, column(rows, 1))

-- What this ending says of the machines on which the trial raised, and of the one that it ended on.
local function judge(id, trial, state)
  if not next(doubts()) then return end
  local here = redis.call('HGET', MACHINES, trial.w)
  local own = here and doubts()[here]
  if own and state ~= 'failed' then
    own.f, own.s = 0, math.max(0, own.s - 1)
    doubt(here, own)
  end
  for _, try in ipairs(trial.b or {}) do
    local known = try[1] ~= here and doubts()[try[1]]
    if known and state == 'failed' then
      known.f = 0 -- it was the trial
      doubt(try[1], known)
    elseif known and not put_aside(here or '') then
      known.s = known.s + 1
      table.insert(known.n, id)
      if #known.n > STRIKES then table.remove(known.n, 1) end
      doubt(try[1], known)
    end
  end
end

for n, row in ipairs(rows) do
  local id, attempt, token, state, result = unpack(row)
  local trial = changed[id] or state_in(states[n])
  if holds(trial, attempt, token) then
    trial.y = 'ended'
    judge(id, trial, state)
    finish(id, trial, state, trial.a, result)
    verdicts[n] = 1
  else
    local over = trial and trial.s ~= 'pending' and trial.s ~= 'running'
    verdicts[n] = over and trial.a == attempt and trial.t == token and 1 or 0
  end
end
save()
return table.concat(verdicts)
