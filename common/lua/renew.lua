-- A heartbeat: extends the leases that still hold and stores what it says of them.
-- ARGV  worker, lease (ms), then per trial: id, attempt, token, beat, progress (JSON)
-- Reads states HASH; writes leases ZSET, progress HASH, workers ZSET.
-- Returns per stale fence: id, why.

local worker, lease = ARGV[1], tonumber(ARGV[2])
local now = now_ms()
local ids, stale, heard = {}, {}, {}
for first = 3, #ARGV, 5 do ids[#ids + 1] = ARGV[first] end
local states, before = fields(STATES, ids), fields(PROGRESS, ids)

for n, id in ipairs(ids) do
  local _, attempt, token, beat, progress = unpack(ARGV, 5 * n - 2, 5 * n + 2)
  local trial = states[n] and cjson.decode(states[n])
  if holds(trial, attempt, token) then
    local last_beat, moved = string.match(before[n] or '', '^(%d+) (%d+) ')
    if not last_beat or tonumber(beat) > tonumber(last_beat) then
      moved = whole(now)
    else
      beat = last_beat
    end
    due[#due + 1] = whole(now + lease)
    due[#due + 1] = id
    heard[#heard + 1] = id
    heard[#heard + 1] = beat .. ' ' .. moved .. ' ' .. progress
  else
    stale[#stale + 1] = id
    stale[#stale + 1] = trial and trial.y or 'gone'
  end
end
in_slices('HSET', PROGRESS, heard)
save()
seen(worker, now)
return stale
