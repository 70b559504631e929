-- The holder ends a trial: RUNNING -> an ended state. If the fence that was accepted reports the
-- same again, it is accepted again, even after the trial was promoted and has another holder. An
-- ending is also accepted while a trial waits that was taken as lost or stuck: PENDING -> an ended
-- state.
-- ARGV  JSON array with a row per trial: id, attempt, token, state, result (JSON)
-- Reads machines HASH. Writes states HASH, pending ZSET, open ZSET, counts HASH, leases ZSET,
-- progress HASH, results HASH, endings LIST, doubts HASH.
-- Returns a string with, per trial, 1 (accepted) or 0 (the fence is stale).

local rows, verdicts = cjson.decode(ARGV[1]), {}
local states = fields(STATES, column(rows, 1))

-- Updates the doubts about the machines on which the trial raised, and the one on which it ended.
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
      known.f = 0 -- the cause was the trial
      doubt(try[1], known)
    elseif known and not put_aside(here or '') then
      known.s = known.s + 1
      table.insert(known.n, id)
      if #known.n > STRIKES then table.remove(known.n, 1) end
      doubt(try[1], known)
    end
  end
end

local function accepted_before(trial, attempt, token)
  for _, own in ipairs(trial and trial.p or {}) do
    if own[1] == attempt and own[2] == token then return true end
  end
  return false
end

for n, row in ipairs(rows) do
  local id, attempt, token, state, result = unpack(row)
  local trial = changed[id] or state_in(states[n])
  if holds(trial, attempt, token) or lost_by(trial, attempt, token) then
    trial.y = 'ended'
    judge(id, trial, state)
    finish(id, trial, state, trial.a, result)
    verdicts[n] = 1
  else
    local over = trial and trial.s ~= 'pending' and trial.s ~= 'running'
    local again = over and trial.a == attempt and trial.t == token
    verdicts[n] = (again or accepted_before(trial, attempt, token)) and 1 or 0
  end
end
save()
return table.concat(verdicts)
