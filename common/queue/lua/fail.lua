-- The holder reports that its trials raised: RUNNING -> PENDING, for another machine to try. The
-- trial does not change if no other machine should try it.
-- ARGV  JSON array with a row per trial: id, attempt, token, reason; limit of tries that raised;
--       live (ms)
-- Reads workers ZSET. Reads and writes machines HASH, doubts HASH. Writes states HASH,
-- pending ZSET, open ZSET, counts HASH, leases ZSET, progress HASH, curves HASH.
-- Returns JSON, per trial: "passed" (it waits for another machine), "lost" (the fence is stale),
-- or, if the holder has to write its record and finish, the earlier tries that raised:
-- [[machine, attempt, worker, reason], ...], or "final" if there are none.

local rows, most, live_ms = cjson.decode(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local now, verdicts = now_ms(), {}

-- Whether another machine shall try a trial: below the limit of tries, all tries that raised were
-- on this machine, and another machine lives that could try it.
local function passes(trial, machine)
  if not machine or #(trial.b or {}) + 1 >= most then return false end
  for _, try in ipairs(trial.b or {}) do
    if try[1] ~= machine then return false end
  end
  return elsewhere(trial, machine, now, live_ms)
end

for n, row in ipairs(rows) do
  local id, attempt, token, reason = unpack(row)
  local trial = changed[id] or state_in(redis.call('HGET', STATES, id))
  if holds(trial, attempt, token) then
    local machine = redis.call('HGET', MACHINES, trial.w)
    if passes(trial, machine) then
      trial.b = trial.b or {}
      table.insert(trial.b, { machine, trial.a, trial.w, reason })
      trial.y = 'passed'
      requeue(id, trial)
      local known = doubts()[machine] or { o = 0, f = 0, s = 0, n = {}, y = reason }
      known.o, known.f = known.o + 1, known.f + 1
      doubt(machine, known)
      verdicts[n] = 'passed'
    else
      verdicts[n] = trial.b or 'final'
    end
  else
    local passed = trial and trial.s == 'pending' and trial.y == 'passed' and trial.a == tonumber(attempt) and trial.t == token
    verdicts[n] = passed and 'passed' or 'lost'
  end
end
save()
return cjson.encode(verdicts)
