#!/bin/sh
# Before removing, not before upgrading: the daemon of the old version works until the new one is there.
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl --quiet disable --now sower.service || true
fi
