#!/bin/sh
# The registration and the jobs stay after `remove`, and go with `purge`.
set -e
if [ "$1" = purge ]; then
    rm -rf /var/lib/sower /var/cache/sower
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
