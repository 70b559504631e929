-- Adds the trials that are not there yet: nothing -> PENDING. Idempotent.
-- ARGV  per trial: id, stage, group, index, highest attempt number known, configuration (JSON)
-- Writes trials HASH, states HASH, pending ZSET, open ZSET, groups HASH, counts HASH.
-- Returns how many were new. One that is pending already only has its attempt number raised.

local added, static = 0, {}
local known = {}
for first = 1, #ARGV, 6 do known[#known + 1] = ARGV[first] end
local states = fields(STATES, known)

for first = 1, #ARGV, 6 do
  local id, stage, group, index, attempt, configuration = unpack(ARGV, first, first + 5)
  local raw = states[(first + 5) / 6]
  local trial = changed[id] or (raw and cjson.decode(raw))
  if not trial then
    enqueue(id, { g = queue_for(stage, group), i = tonumber(index), a = tonumber(attempt) })
    static[#static + 1] = id
    static[#static + 1] = configuration
    added = added + 1
  elseif trial.s == 'pending' and trial.a < tonumber(attempt) then
    trial.a = tonumber(attempt)
    changed[id] = trial
  end
end
in_slices('HSET', TRIALS, static)
save()
return added
