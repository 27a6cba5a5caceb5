#!/usr/bin/env bash
# What `make dist` has made, as a host sees it: the package in a Debian made by debootstrap (installed, upgraded with
# a changed configuration while a job runs, removed, purged), the tarball in a chroot with busybox only.
#
#   tests/packages.sh target
set -euo pipefail

target=$(realpath "${1:?usage: $0 TARGET}")
shopt -s nullglob
debs=("$target"/dist/sower_*.deb) tars=("$target"/dist/sower-*.tar.gz)
[[ ${#debs[@]} == 1 && ${#tars[@]} == 1 ]] || { echo 'packages: run `make dist` first' >&2; exit 2; }
forge=$target/debug/sower-forge
[[ -x $forge ]] || { echo "packages: $forge is not there; make test-packages builds it" >&2; exit 2; }
[[ $(id -u) == 0 ]] || { echo 'packages: chroot needs root' >&2; exit 2; }
base=$target/chroot/base
root=$(mktemp -d "$target/chroot-test.XXXXXX")
daemon= to_forge=
cleanup() {
    if [[ -n $to_forge ]]; then exec {to_forge}>&-; fi
    if [[ -n $daemon ]]; then kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null; fi || true
    if mountpoint --quiet "$root/debian/proc"; then umount "$root/debian/proc"; fi
    rm -rf "$root"
}
trap cleanup EXIT
passed=0
fail() {
    printf 'packages: FAILED: %s\n' "$1" >&2
    if [[ -f $root/daemon.log ]]; then sed 's/^/  /' "$root/daemon.log" >&2; fi
    exit 1
}
ok() { passed=$((passed + 1)); printf 'packages: %s\n' "$*"; }
inside() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive chroot "$new" "$@"; }
# Waits until a file is there in the chroot.
there() {
    local tries=0
    until [[ -e $new$1 ]]; do
        ((tries++ < 600)) || fail "$2"
        sleep 0.1
    done
}
# A daemon in the chroot, with whatever program is installed now; waits until it would take a task.
start() {
    local tries=0
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot "$new" sower daemon >>"$root/daemon.log" 2>&1 &
    daemon=$!
    until inside sower status >/dev/null 2>&1; do
        ((tries++ < 600)) || fail 'the daemon does not become ready'
        sleep 0.1
    done
}
stop() {
    kill "$daemon"
    wait "$daemon" || fail 'the daemon did not leave in peace'
    daemon=
}
# Links between the pages of a folder that lead nowhere.
lost_links() {
    python3 - "$1" <<'PYTHON'
import re, sys
from pathlib import Path

for page in Path(sys.argv[1]).rglob("*.md"):
    for target in re.findall(r"\]\(([^)#\s]+)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)):
        if "://" not in target and not (page.parent / target).exists():
            print(f"{page.relative_to(sys.argv[1])}: {target}")
PYTHON
}

(cd "$target/dist" && sha256sum --quiet --check SHA256SUMS) || fail 'SHA256SUMS'
ok 'SHA256SUMS'

boms=("$target"/dist/sower-*.cdx.json)
[[ ${#boms[@]} == 1 ]] || fail 'no SBOM'
# Read with other eyes than those that wrote it: each crate is there once, with licence and hash, and can be reached.
python3 - "${boms[0]}" <<'PYTHON' || fail 'the SBOM'
import json, sys

bom = json.load(open(sys.argv[1]))
assert bom["bomFormat"] == "CycloneDX" and bom["metadata"]["component"]["name"] == "sower", "no CycloneDX of sower"
parts = {part["bom-ref"]: part for part in bom["components"]}
names = {part["name"] for part in parts.values()}
assert len(parts) == len(bom["components"]) > 100 and {"rustls", "tokio", "clap"} <= names, names
assert "insta" not in names and "cc" not in names, "what is only tested or built with is not in the binary"
for part in parts.values():
    assert part.get("licenses"), f"no licence of {part['name']}"
    assert part.get("hashes") or part["name"].startswith("sower"), f"no hash of {part['name']}"
tree = {entry["ref"]: entry.get("dependsOn", []) for entry in bom["dependencies"]}
seen, waiting = set(), [bom["metadata"]["component"]["bom-ref"]]
while waiting:
    if (ref := waiting.pop()) not in seen:
        seen.add(ref)
        waiting += tree[ref]
assert set(parts) <= seen, set(parts) - seen
PYTHON
ok 'SBOM'

if [[ ! -e $base/made ]]; then
    rm -rf "$base"
    debootstrap --variant=minbase bookworm "$base" >"$target/chroot.log" 2>&1 || fail "debootstrap: see $target/chroot.log"
    touch "$base/made"
fi
new=$root/debian
cp -a "$base" "$new"
mount -t proc proc "$new/proc"
cp "${debs[0]}" "$new/sower.deb"
inside dpkg --install /sower.deb >/dev/null || fail 'install'
inside sower --version >/dev/null || fail 'the installed program does not start'
inside sower config check >/dev/null || fail 'the installed configuration'
share=$new/usr/share
for file in man/man1/sower.1.gz man/man1/sower-daemon.1.gz man/man1/sower-deploy-helm.1.gz \
    bash-completion/completions/sower zsh/vendor-completions/_sower fish/vendor_completions.d/sower.fish \
    doc/sower/runner-config/monitoring/sower.rules.yml doc/sower/docs/start.md doc/sower/workflows/deploy.yaml \
    doc/sower/sower.cdx.json doc/sower/copyright; do
    [[ -s $share/$file ]] || fail "/usr/share/$file is not there"
done
# Every command has its page.
for page in $(inside sower --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]\+\) .*/\1/p'); do
    [[ $page == help || -s $share/man/man1/sower-$page.1.gz ]] || fail "no manual page of sower $page"
done
inside bash -c '. /usr/share/bash-completion/completions/sower && complete -p sower' >/dev/null || fail 'completion of bash'
grep -q '^ExecStart=/usr/bin/sower daemon' "$new/usr/lib/systemd/system/sower.service" || fail 'the unit starts another program'
lost=$(lost_links "$share/doc/sower") && [[ -z $lost ]] || fail "links of the installed pages lead nowhere: $lost"
[[ $(stat -c %a "$new/var/lib/sower") == 700 ]] || fail '/var/lib/sower is not private'
[[ $(find "$new/etc/sower" "$share/doc/sower" "$share/man/man1" -not -uid 0 | wc -l) == 0 ]] || fail 'files that are not of root'
ok 'installed'

coproc FORGE { exec "$forge"; }
to_forge=${FORGE[1]}
read -r url token <&"${FORGE[0]}"
inside sower register --no-interactive --instance "$url" --token "$token" --name package \
    --labels package:host >/dev/null || fail 'register'
start
cat >"$root/workflow.yaml" <<'WORKFLOW'
on: push
jobs:
  long:
    runs-on: package
    steps:
      - shell: sh
        run: |
          touch /tmp/began
          while [ ! -e /tmp/go ]; do sleep 0.1; done
          echo "the job went on"
WORKFLOW
echo "$root/workflow.yaml" >&"$to_forge"
there /tmp/began 'the job does not begin'

# The next version: another program, another configuration.
echo '# mine' >>"$new/etc/sower/config.yaml"
dpkg-deb --raw-extract "${debs[0]}" "$root/next"
sed -i 's/^Version: .*/Version: 99.0.0/' "$root/next/DEBIAN/control"
echo '# of the new version' >>"$root/next/etc/sower/config.yaml"
printf 'next' >>"$root/next/usr/bin/sower"
rm -f "$root/next/DEBIAN/md5sums"
dpkg-deb --build --root-owner-group "$root/next" "$new/next.deb" >/dev/null
inside dpkg --force-confold --install /next.deb >/dev/null 2>&1 || fail 'upgrade'
[[ $(tail -c 4 "$new/usr/bin/sower") == next ]] || fail 'the upgrade left the old program'
grep -q '^# mine' "$new/etc/sower/config.yaml" || fail 'the upgrade took the configuration away'
[[ -s $new/var/lib/sower/.runner ]] || fail 'the upgrade took the registration away'
ok 'upgraded, configuration and registration kept'

# What the package does where there is an init: the daemon is started again. The job does not notice.
stop
start
inside sower status | grep -q '^jobs  *1 of 1' || fail 'the new daemon does not know the job'
touch "$new/tmp/go"
read -r -t 60 result <&"${FORGE[0]}" || fail 'no result of the job'
[[ $result == success ]] || fail "the job ended with $result"
stop
ok 'a job went on through the upgrade'

inside dpkg --remove sower >/dev/null 2>&1 || fail 'remove'
[[ ! -e $new/usr/bin/sower && -e $new/etc/sower/config.yaml && -e $new/var/lib/sower/.runner ]] ||
    fail 'remove left or took the wrong files'
[[ ! -e $share/doc/sower && ! -e $share/man/man1/sower.1.gz ]] || fail 'remove left pages'
ok 'removed, configuration and registration kept'
inside dpkg --purge sower >/dev/null 2>&1 || fail 'purge'
[[ ! -e $new/etc/sower && ! -e $new/var/lib/sower ]] || fail 'purge left files'
ok 'purged'
umount "$new/proc"

new=$root/busybox
mkdir -p "$new"/{bin,etc/sower,etc/init.d,tmp,proc}
cp "$(command -v busybox)" "$new/bin/busybox"
chroot "$new" /bin/busybox --install -s /bin
tar -C "$new" -xzf "${tars[0]}"
inside sh -ec '
    cd /sower-*
    # Debian builds its busybox without `install`, Alpine with it.
    cp sower /bin/sower
    cp runner-config/sower.initd /etc/init.d/sower
    chmod 755 /bin/sower /etc/init.d/sower
    cp runner-config/config.yaml /etc/sower/
    sh -n /etc/init.d/sower
    sower config check
    # What the health check of the service asks: nobody runs here.
    ! sower status --quiet
    # It looks at what there is, and says what is not.
    sower doctor | grep -q "not on PATH"' >/dev/null || fail 'the tarball in a chroot with busybox'
lost=$(lost_links "$new"/sower-*/) && [[ -z $lost ]] || fail "links of the tarball's pages lead nowhere: $lost"
rm -f "$new/tmp/began"
inside sower register --no-interactive --instance "$url" --token "$token" --name tarball --labels package:host >/dev/null ||
    fail 'register with busybox only'
start
echo "$root/workflow.yaml" >&"$to_forge"
there /tmp/began 'the job does not begin with busybox only'
stop
start
touch "$new/tmp/go"
read -r -t 60 result <&"${FORGE[0]}" || fail 'no result of the job with busybox only'
[[ $result == success ]] || fail "with busybox only the job ended with $result"
stop
ok 'the tarball with busybox only: a job went on through a restart'
echo "$passed passed, 0 failed"
