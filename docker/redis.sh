#!/bin/sh
# Starts Redis with the password of /secrets/redis_password, as the image's user `redis`.
#
# The configuration goes in through standard input: the password stands in no argument list, environment or image.
set -eu

chown -R redis:redis /data
exec setpriv --reuid redis --regid redis --clear-groups -- redis-server - <<CONFIGURATION
port 6379
dir /data
requirepass $(cat /secrets/redis_password)
# Every write is in the append-only file within a second; snapshots would only repeat it.
appendonly yes
appendfsync everysec
save ""
# A full memory must refuse new trials, never drop old ones.
maxmemory-policy noeviction
CONFIGURATION
