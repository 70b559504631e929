-- Reads the workers at one moment. Runs without shared.lua.
-- KEYS  1 workers HASH, 2 seen ZSET, 3 orders HASH, 4 slow SET, as in announce.lua
-- ARGV  ms after which a silent worker is forgotten
-- Returns, per worker: its line (JSON), ms since it was seen, "1" if slow.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {}
local found = redis.call('ZRANGEBYSCORE', KEYS[2], string.format('%.0f', now - ARGV[1]), '+inf', 'WITHSCORES')
for n = 1, #found, 2 do
  local line = redis.call('HGET', KEYS[1], found[n])
  if line then
    reply[#reply + 1] = line
    reply[#reply + 1] = string.format('%.0f', now - found[n + 1])
    reply[#reply + 1] = redis.call('SISMEMBER', KEYS[4], found[n]) == 1 and '1' or '0'
  end
end
return reply
