#!/bin/sh
# Entry point of an engine's container beside a Nebula agent: runs what `start_command.sh` says, ends it when that is gone.
#
#   sidecar-entrypoint.sh [DIR]        DIR is the volume shared with the agent (default /nebula)
#
# See nebula_agent/decisions/sidecar.py. An engine that ended is not started again: the agent decides that, with a new epoch.
set -u
dir=${1:-${NEBULA_SIDECAR_DIR:-/nebula}}
grace=${NEBULA_SIDECAR_GRACE:-30}
pid=

epoch() { sed -n 's/^# engine_epoch: //p' "$dir/start_command.sh" 2>/dev/null | head -n 1; }
note() { printf '%s\n' "$2" >"$dir/.$1.draft" && mv "$dir/.$1.draft" "$dir/$1"; }
ended() { note ended "$1 $2"; rm -f "$dir/running"; }

stop() {
    kill -TERM "$pid" 2>/dev/null
    waited=0
    while kill -0 "$pid" 2>/dev/null && [ "$waited" -lt "$((grace * 5))" ]; do sleep 0.2; waited=$((waited + 1)); done
    # The whole session: an engine's workers outlive it.
    kill -s KILL -- "-$pid" 2>/dev/null
}

trap '[ -n "$pid" ] && stop; exit 0' TERM INT

# What ran when this container was started anew has ended, nobody knows how.
[ -f "$dir/running" ] && ended "$(cat "$dir/running")" lost

while :; do
    now=$(epoch)
    last=$(cut -d' ' -f1 "$dir/ended" 2>/dev/null)
    if [ -z "$now" ] || [ "$now" = "$last" ]; then
        sleep 0.5
        continue
    fi
    note running "$now"
    setsid sh "$dir/start_command.sh" >>"$dir/engine.log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        if [ "$(epoch)" != "$now" ]; then
            stop
            break
        fi
        sleep 0.5
    done
    wait "$pid" 2>/dev/null
    status=$?
    kill -s KILL -- "-$pid" 2>/dev/null
    pid=
    ended "$now" "$status"
done
