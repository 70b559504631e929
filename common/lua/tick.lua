-- Looks for expired leases; after a gap in the ticks (an outage) extends all of them once instead.
-- ARGV  lease (ms), "1" if a master ticks, most leases to report
-- Reads states HASH; writes meta HASH, leases ZSET.
-- Returns {"1" if extended, then per expired lease: id, attempt, token, worker}.

local lease, master, most = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local now = now_ms()
local last = tonumber(redis.call('HGET', META, 'tick') or 0)
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
  local trial = cjson.decode(raw)
  for _, value in ipairs({ ids[n], trial.a, trial.t, trial.w }) do reply[#reply + 1] = value end
end
return reply
