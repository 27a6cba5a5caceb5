#!/usr/bin/env bash
# The deployment tests on a real Kubernetes as a part of `make test`: where they can run they do, and where they cannot
# that is said, with the reason. The tests without a cluster run in any case.
#
# `begin` decides and has Kubernetes built in the background, beside everything else that is compiled meanwhile; `end`
# waits for it and runs the tests. SOWER_CLUSTER_TESTS=no leaves them out; `make test-cluster` runs nothing else.
set -euo pipefail

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TARGET=${CARGO_TARGET_DIR:-$(cd "$SOURCE/../.." && pwd)/target}
readonly SOURCE TARGET
readonly STATE=$TARGET/kubernetes/suite
readonly LOG=$TARGET/kubernetes/build.log

say() { printf 'cluster tests: %s\n' "$*"; }

# Leaves the build to end by itself: it is of use to the next run.
begin() {
    local why
    rm -rf "$STATE"
    mkdir -p "$STATE"
    if [[ ${SOWER_CLUSTER_TESTS:-} == no ]]; then
        why='SOWER_CLUSTER_TESTS=no'
    elif why=$("$SOURCE/cluster.sh" able 2>&1); then
        why=''
    fi
    if [[ -n $why ]]; then
        why=${why#cluster: }
        printf '%s\n' "$why" >"$STATE/unable"
        not_run "$why"
        return
    fi
    "$SOURCE/../../scripts/parts.sh" cluster
    say "Kubernetes is built beside the rest (the first time), and the deployments are tested on it in the end"
    # In a session of its own, so that it outlives this script and no terminal's Ctrl-C ends it half-way.
    setsid bash -c '"$1" build >"$2" 2>&1; echo $? >"$3/code.new"; mv "$3/code.new" "$3/code"' \
        build "$SOURCE/cluster.sh" "$LOG" "$STATE" </dev/null >/dev/null 2>&1 &
    echo $! >"$STATE/process"
}

not_run() {
    say "NOT RUN on a real Kubernetes: $1"
    say "what a deployment does without a cluster is tested all the same (tests/deploy.rs)"
}

end() {
    if [[ -f $STATE/unable ]]; then
        not_run "$(<"$STATE/unable")"
        return
    fi
    [[ -f $STATE/process ]] || { say "begin comes first" >&2; exit 2; }
    local began=$SECONDS
    until [[ -f $STATE/code ]]; do
        [[ -d /proc/$(<"$STATE/process") ]] || sleep 1
        [[ -d /proc/$(<"$STATE/process") || -f $STATE/code ]] || break
        sleep 0.5
    done
    ((SECONDS - began < 3)) || say "Kubernetes was waited for, $((SECONDS - began)) s"
    if [[ $(cat "$STATE/code" 2>/dev/null) != 0 ]]; then
        tail -n 20 "$LOG" >&2
        say "Kubernetes was not built; all that was said is in $LOG" >&2
        exit 1
    fi
    began=$SECONDS
    "$SOURCE/cluster.sh" run cargo test --no-fail-fast --test kubernetes_cluster -- --ignored
    say "passed in $((SECONDS - began)) s"
}

case ${1:-} in
begin | end) "$1" ;;
*)
    printf 'Usage: %s begin|end\n' "$0" >&2
    exit 2
    ;;
esac
