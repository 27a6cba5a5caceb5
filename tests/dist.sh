#!/usr/bin/env bash
# The static binary in a chroot that holds nothing else: help, register, a daemon, a job.
#
#   tests/dist.sh target/dist/…/sower [target/debug/sower-forge]
#
# Beside the binary there are /etc/resolv.conf and /etc/hosts, and, since the job has a `run` step and a
# step wants a shell, busybox as /bin/sh. The forge stands outside, known by a name that only the
# chroot's /etc/hosts has: a resolver that needs a library to be loaded would not find it.
set -euo pipefail

binary=${1:?usage: $0 BINARY [FORGE]}
forge=${2:-${CARGO_TARGET_DIR:-target}/debug/sower-forge}
busybox=$(command -v busybox)
[[ -x $binary && -x $forge ]] || { echo "dist: $binary or $forge is not there" >&2; exit 2; }
root=$(mktemp -d)
daemon=
to_forge=
cleanup() {
    if [[ -n $to_forge ]]; then exec {to_forge}>&-; fi
    if [[ -n $daemon ]]; then kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null; fi || true
    rm -rf "$root"
    return 0
}
trap cleanup EXIT

fail() {
    printf 'dist: FAILED: %s\n' "$1" >&2
    if [[ -f $root/output ]]; then sed 's/^/  /' "$root/output" >&2; fi
    exit 1
}
passed() { printf 'dist: %s\n' "$*"; }

[[ $(id -u) == 0 ]] || { echo 'dist: chroot needs root' >&2; exit 2; }
if file=$(LC_ALL=C ldd "$binary" 2>&1); then
    [[ $file == *'statically linked'* ]] || fail "$binary is not static: $file"
fi
passed "static, $(stat -c %s "$binary") bytes"

new=$root/new
mkdir -p "$new"/{bin,etc,tmp,state}
cp "$binary" "$new/sower"
cp "$busybox" "$new/bin/sh"
echo '127.0.0.1 localhost forge.test' >"$new/etc/hosts"
echo 'nameserver 127.0.0.1' >"$new/etc/resolv.conf"
# env -i: not even a variable of this machine.
inside() { env -i PATH=/bin HOME=/state "$(command -v chroot)" "$new" "$@"; }

inside /sower --help >"$root/output" 2>&1 || fail "--help"
grep -q 'sower register' "$root/output" || fail "--help has no example"
passed "--help"

coproc FORGE { exec "$forge"; }
to_forge=${FORGE[1]}
read -r url token <&"${FORGE[0]}"
port=${url##*:}
printf 'runner:\n  file: /state/.runner\nhost:\n  home: /state\n' >"$new/etc/config.yaml"

inside /sower register -c /etc/config.yaml --no-interactive --instance "http://forge.test:$port" \
    --token "$token" --name dist --labels dist:host >"$root/output" 2>&1 || fail "register"
[[ $(stat -c %a "$new/state/.runner") == 600 ]] || fail "the registration is not private"
passed "register, by a name that only /etc/hosts has"

inside /sower daemon -c /etc/config.yaml >"$root/output" 2>&1 &
daemon=$!
cat >"$root/workflow.yaml" <<'END'
on: push
jobs:
  dist:
    runs-on: dist
    steps:
      - id: one
        shell: sh
        run: |
          echo "hello from the chroot"
          echo "answer=42" >>"$GITHUB_OUTPUT"
      - shell: sh
        run: test "${{ steps.one.outputs.answer }}" = 42
END
echo "$root/workflow.yaml" >&"$to_forge"
read -r -t 30 result <&"${FORGE[0]}" || fail "no result of the job"
[[ $result == success ]] || fail "the job ended with $result"
passed "daemon and a job: $result"
echo "4 passed, 0 failed"
