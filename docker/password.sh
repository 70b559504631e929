#!/bin/sh
# Writes two random passwords for Redis, once. They belong to the owner of the checkout on the host.
# The master's is in /secrets/redis_password and the workers' in /secrets/worker/redis_password, the
# only folder that workers see.
#
# The owner is that of the checkpoint folder, which is part of the checkout. The folders of the
# secrets may have just been made by the Docker daemon and belong to root. An existing password is
# kept, since Redis may be running with it.
set -eu

owner=$(stat -c %u:%g /checkpoints)

write_password() { # write_password FILE
  if [ -s "$1" ]; then
    echo "the password in $1 is kept"
  else
    head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$1.new"
    mv "$1.new" "$1"
    echo "a new password is in $1"
  fi
  chown "$owner" "$1"
  chmod 0600 "$1"
}

umask 077
mkdir -p /secrets/worker
chown "$owner" /secrets /secrets/worker
chmod 0700 /secrets /secrets/worker
write_password /secrets/redis_password
write_password /secrets/worker/redis_password
