-- Reads the clock of the server that has the search. In a cluster, a command without a key may
-- reach another server.
-- ARGV  none
-- Returns milliseconds.

return whole(now_ms())
