-- Adds a search to the list of all searches. Its first launch time stays. Runs without shared.lua.
-- KEYS  1 searches HASH  search id -> "<microseconds of the first launch> <name>"
-- ARGV  search id, name
-- Returns nothing.

local time = redis.call('TIME')
local known = redis.call('HGET', KEYS[1], ARGV[1])
local launched = known and string.match(known, '^%d+') or string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('HSET', KEYS[1], ARGV[1], launched .. ' ' .. ARGV[2])
