#!/bin/sh
# Starts Redis with its two users, `master` and `worker`, as the image's system user `redis`. Nobody else gets in.
#
# The configuration goes in through standard input: no password stands in an argument list, environment or image.
set -eu

rules() { # rules NAME: what a user may do, on one line
  grep -v '^#' "/opt/docker/$1.acl" | tr '\n' ' '
}

chown -R redis:redis /data
exec setpriv --reuid redis --regid redis --clear-groups -- redis-server - <<CONFIGURATION
port 6379
dir /data
# Off, so that nobody is it; but Redis replays its append-only file as this user, and drops what it may not do.
user default off resetpass ~* &* +@all
user master on >$(cat /secrets/redis_password) $(rules master)
user worker on >$(cat /secrets/worker/redis_password) $(rules worker)
# Every write is in the append-only file within a second; snapshots would only repeat it.
appendonly yes
appendfsync everysec
save ""
# A full memory must refuse new trials, never drop old ones.
maxmemory-policy noeviction
CONFIGURATION
