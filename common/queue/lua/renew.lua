-- A heartbeat: extends the leases that still hold, and stores the progress of their trials.
-- ARGV  worker, lease (ms), JSON array with a row per trial: id, attempt, token, beat, progress
--       (JSON), curves (JSON, or empty if they have not changed)
-- Reads states HASH. Writes leases ZSET, progress HASH, curves HASH, workers ZSET.
-- Returns, per stale fence: id, why.

local worker, lease = ARGV[1], tonumber(ARGV[2])
local now = now_ms()
local rows, stale, heard, drawn = cjson.decode(ARGV[3]), {}, {}, {}
local ids = column(rows, 1)
local states, before = fields(STATES, ids), fields(PROGRESS, ids)

for n, row in ipairs(rows) do
  local id, attempt, token, beat, progress, curves = unpack(row)
  local trial = state_in(states[n])
  if holds(trial, attempt, token) then
    local last_beat, moved = string.match(before[n] or '', '^(%d+) (%d+) ')
    if not last_beat or beat > tonumber(last_beat) then
      last_beat, moved = whole(beat), whole(now)
    end
    due[#due + 1] = whole(now + lease)
    due[#due + 1] = id
    heard[#heard + 1] = id
    heard[#heard + 1] = last_beat .. ' ' .. moved .. ' ' .. progress
    if curves ~= '' then
      drawn[#drawn + 1] = id
      drawn[#drawn + 1] = curves
    end
  else
    stale[#stale + 1] = id
    stale[#stale + 1] = trial and trial.y or states[n] and 'damaged' or 'gone'
  end
end
in_slices('HSET', PROGRESS, heard)
in_slices('HSET', CURVES, drawn)
save()
seen(worker, now)
remember()
return stale
