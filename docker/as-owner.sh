#!/bin/sh
# Runs a command as the user who owns the checkpoint folder. What it writes there then belongs to
# that user on the host.
#
# It is the image's entrypoint. Under the names `master` and `worker` it is also in the PATH before
# the programs of these names, because `docker compose exec` starts a command as root without the
# entrypoint.
set -eu

program=${0##*/}
case $program in
  master | worker) set -- "/opt/coarsefine/bin/$program" "$@" ;;
esac

[ "$(id -u)" -eq 0 ] || exec "$@"

owner=$(stat -c %u "$CHECKPOINT_DIR")
group=$(stat -c %g "$CHECKPOINT_DIR")
if [ "$owner" -eq 0 ]; then
  echo "$CHECKPOINT_DIR belongs to root, so $1 runs as root\
 (under rootless Docker that is you; else: chown the folder on the host)" >&2
  exec "$@"
fi

# The owner has no entry in the image's /etc/passwd. Libraries that ask for a name or a home folder
# find these.
export HOME=/tmp USER=coarsefine LOGNAME=coarsefine
exec setpriv --reuid "$owner" --regid "$group" --clear-groups -- "$@"
