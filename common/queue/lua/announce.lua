-- A worker reports that it lives, and gets its orders. Workers unseen for an hour are forgotten.
-- Runs without shared.lua.
-- KEYS  1 workers HASH  worker -> what it reported last, JSON that no script reads
--       2 seen ZSET     worker, by the time of its last report (ms, server clock)
--       3 orders HASH   worker -> "quit"
--       4 slow SET      workers that are slow on several trials
-- ARGV  worker, its line (JSON), ms after which a silent worker is forgotten
-- Returns the orders.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('(%.0f', now - ARGV[3]), 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[2], old)
  redis.call('HDEL', KEYS[1], old)
  redis.call('HDEL', KEYS[3], old)
  redis.call('SREM', KEYS[4], old)
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%.0f', now), ARGV[1])
local order = redis.call('HGET', KEYS[3], ARGV[1])
return order and { order } or {}
