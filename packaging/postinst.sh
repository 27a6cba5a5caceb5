#!/bin/sh
# After installing or upgrading. Restarting the daemon leaves running jobs alone; a host that is not registered yet
# gets no daemon.
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if systemctl --quiet is-active sower.service; then
        systemctl restart sower.service
    fi
fi
