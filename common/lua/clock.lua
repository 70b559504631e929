-- The time of the server that has the search, which in a Cluster no command without a key reaches.
-- ARGV  none
-- Returns milliseconds.

return whole(now_ms())
