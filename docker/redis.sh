#!/bin/sh
# Starts Redis with its two users, `master` and `worker`, as the image's system user `redis`. Nobody
# else gets in.
#
# Redis reads its configuration from standard input, so that no password is in an argument list, an
# environment or the image.
set -eu

rules() { # rules NAME: what a user may do, on one line
  grep -v '^#' "/opt/rights/$1.acl" | tr '\n' ' '
}

chown -R redis:redis /data
exec setpriv --reuid redis --regid redis --clear-groups -- redis-server - <<CONFIGURATION
port 6379
dir /data
# The default user is off, so nobody can log in as it. It has all rights because Redis replays its
# append-only file as this user, and drops what it may not do.
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
