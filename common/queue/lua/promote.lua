-- Gives trials a longer budget: COMPLETED -> PENDING at a later rung. A trial that waits at an
-- earlier rung, since Redis has lost its end, goes on waiting at the later one. Idempotent.
-- ARGV  JSON array with a row per trial: id, stage, group, highest attempt number known,
--       configuration (JSON), rung
-- Reads and writes groups HASH. Writes trials HASH, states HASH, pending ZSET, open ZSET,
-- counts HASH, results HASH.
-- Returns a string with, per trial, 2 (it has changed), 1 (nothing to do: it is at that rung or
-- above, or has ended in another way) or 0 (ask again later: it runs at an earlier rung, is not
-- known, or its state is damaged).

local rows, verdicts = cjson.decode(ARGV[1]), {}
local states = fields(STATES, column(rows, 1))

-- Clears a completed trial for its next rung, as a retry does. The fence of its last holder is
-- kept, so that it still gets OK for its end.
local function go_on(id, trial)
  trial.f = trial.a
  if trial.t then
    trial.p = trial.p or {}
    table.insert(trial.p, { trial.a, trial.t })
  end
  trial.t, trial.l, trial.b, trial.x = nil, nil, nil, nil
  redis.call('HDEL', RESULTS, id)
end

for n, row in ipairs(rows) do
  local id, stage, group, attempt, configuration, rung = unpack(row)
  local trial = changed[id] or state_in(states[n])
  local earlier = trial and (trial.r or 0) < rung
  verdicts[n] = (not trial or (earlier and trial.s == 'running')) and 0 or 1
  if earlier and (trial.s == 'completed' or trial.s == 'pending') then
    redis.call('HSET', TRIALS, id, configuration)
    if trial.s == 'completed' then
      go_on(id, trial)
    else
      -- the end of the earlier rung does not count for the later one
      if trial.y == 'expired' or trial.y == 'stuck' then trial.t = nil end
      -- it is still in the sorted set, where enqueue moves it
      local left = queue_of(trial)
      grown[left] = (grown[left] or 0) - 1
    end
    trial.g, trial.r = queue_for(stage, group, rung), rung
    enqueue(id, trial)
    verdicts[n] = 2
  end
  if trial and trial.s == 'pending' and trial.a < attempt then
    trial.a = attempt
    changed[id] = trial
  end
end
save()
return table.concat(verdicts)
