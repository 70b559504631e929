-- Sends a trial back: FAILED or KILLED -> PENDING. Its losses are forgotten, but a trial that was
-- lost last stays a suspect.
-- ARGV  id
-- Writes states HASH, pending ZSET, open ZSET, counts HASH, results HASH.
-- Returns 1, or 0 in any other state.

local id = ARGV[1]
local trial = state_of(id)
if not trial or (trial.s ~= 'failed' and trial.s ~= 'killed') then return 0 end
trial.t, trial.l, trial.e, trial.b, trial.y, trial.f = nil, nil, nil, nil, 'retried', trial.a
redis.call('HDEL', RESULTS, id)
enqueue(id, trial)
save()
return 1
