-- Reads the trials under lease at one moment.
-- ARGV  none
-- Reads leases ZSET, states HASH, trials HASH, progress HASH.
-- Returns JSON [now (ms), then per trial: id, state (JSON), configuration (JSON), progress or ""].

local ids = redis.call('ZRANGE', LEASES, 0, -1)
local states, configurations, progress = fields(STATES, ids), fields(TRIALS, ids), fields(PROGRESS, ids)
local reply = { now_ms() }
for n, id in ipairs(ids) do
  for _, value in ipairs({ id, states[n] or '', configurations[n] or '', progress[n] or '' }) do reply[#reply + 1] = value end
end
return cjson.encode(reply)
