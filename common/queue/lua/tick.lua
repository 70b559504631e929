-- Finds expired leases, and ends trials under one whose state is damaged. After a gap in the ticks
-- (an outage) it extends all leases once instead. If the server's clock went back, it moves times
-- that are too far ahead to where they can be.
-- ARGV  lease (ms), "1" if a master ticks, limit of leases to report
-- Reads states HASH. Writes meta HASH, leases ZSET, workers ZSET; for a damaged trial also
-- states HASH, counts HASH, progress HASH, curves HASH, results HASH, endings LIST.
-- Returns {"1" if extended, then per expired lease: id, attempt, token, worker}.

local lease, master, most = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local now = now_ms()
local last = tonumber(redis.call('HGET', META, 'tick') or 0) or 0
-- the clock was set back, or another server took over whose clock is behind
if now < last then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. whole(now + lease), '+inf')) do
    due[#due + 1] = whole(now + lease)
    due[#due + 1] = id
  end
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. whole(now), '+inf')) do
    redis.call('ZADD', WORKERS, whole(now), name)
  end
  if (tonumber(redis.call('HGET', META, 'master') or 0) or 0) > now then redis.call('HSET', META, 'master', whole(now)) end
end
redis.call('HSET', META, 'tick', whole(now))
if master == '1' then redis.call('HSET', META, 'master', whole(now)) end
redis.call('PEXPIRE', META, FORGET_MS)

if now - last > lease / 2 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', whole(now + lease))) do
    due[#due + 1] = whole(now + lease)
    due[#due + 1] = id
  end
  save()
  return { '1' }
end

local reply = { '0' }
local ids = redis.call('ZRANGEBYSCORE', LEASES, '-inf', '(' .. whole(now), 'LIMIT', 0, most)
for n, raw in ipairs(fields(STATES, ids)) do
  local trial = state_in(raw)
  if trial and trial.s == 'running' then
    for _, value in ipairs({ ids[n], trial.a, trial.t, trial.w }) do reply[#reply + 1] = value end
  else
    bury(ids[n], 'running')
  end
end
save()
return reply
