#!/bin/sh
# Writes a random password for Redis to /secrets/redis_password, once, for whoever owns the checkout on the host.
#
# The owner is read off the checkpoint folder, which is part of the checkout; /secrets itself may have been made by
# the Docker daemon a moment ago and belong to root. A password that exists is kept: Redis may be running with it.
set -eu

file=/secrets/redis_password
owner=$(stat -c %u:%g /checkpoints)

if [ -s "$file" ]; then
  echo "the password in secrets/redis_password is kept"
else
  umask 077
  head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$file.new"
  mv "$file.new" "$file"
  echo "a new password is in secrets/redis_password"
fi
chown "$owner" /secrets "$file"
chmod 0700 /secrets
chmod 0600 "$file"
