#!/usr/bin/env bash
# What `make dist` has made, as a host sees it: the package in a Debian made by debootstrap (installed, upgraded with
# a changed configuration, removed, purged), the tarball in a chroot with busybox only.
#
#   tests/packages.sh target
set -euo pipefail

target=$(realpath "${1:?usage: $0 TARGET}")
shopt -s nullglob
debs=("$target"/dist/sower_*.deb) tars=("$target"/dist/sower-*.tar.gz)
[[ ${#debs[@]} == 1 && ${#tars[@]} == 1 ]] || { echo 'packages: run `make dist` first' >&2; exit 2; }
[[ $(id -u) == 0 ]] || { echo 'packages: chroot needs root' >&2; exit 2; }
base=$target/chroot/base
root=$(mktemp -d "$target/chroot-test.XXXXXX")
trap 'rm -rf "$root"' EXIT
passed=0
fail() { printf 'packages: FAILED: %s\n' "$1" >&2; exit 1; }
ok() { passed=$((passed + 1)); printf 'packages: %s\n' "$*"; }
inside() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive chroot "$new" "$@"; }

(cd "$target/dist" && sha256sum --quiet --check SHA256SUMS) || fail 'SHA256SUMS'
ok 'SHA256SUMS'

boms=("$target"/dist/sower-*.cdx.json)
[[ ${#boms[@]} == 1 ]] || fail 'no SBOM'
for name in CycloneDX '"rustls"' '"tokio"' '"licenses"'; do
    grep -q "$name" "${boms[0]}" || fail "the SBOM has no $name"
done
ok 'SBOM'

if [[ ! -e $base/made ]]; then
    rm -rf "$base"
    debootstrap --variant=minbase bookworm "$base" >"$target/chroot.log" 2>&1 || fail "debootstrap: see $target/chroot.log"
    touch "$base/made"
fi
new=$root/debian
cp -a "$base" "$new"
cp "${debs[0]}" "$new/sower.deb"
inside dpkg --install /sower.deb >/dev/null || fail 'install'
inside sower --version >/dev/null || fail 'the installed program does not start'
inside sower config check >/dev/null || fail 'the installed configuration'
for file in usr/share/man/man1/sower-daemon.1.gz usr/share/bash-completion/completions/sower \
    usr/lib/systemd/system/sower.service usr/share/doc/sower/monitoring/sower.rules.yml \
    usr/share/doc/sower/docs/start.md usr/share/doc/sower/sower.cdx.json; do
    [[ -s $new/$file ]] || fail "/$file is not there"
done
[[ $(stat -c %a "$new/var/lib/sower") == 700 ]] || fail '/var/lib/sower is not private'
ok 'installed'

echo '# mine' >>"$new/etc/sower/config.yaml"
echo '{}' >"$new/var/lib/sower/.runner"
dpkg-deb --raw-extract "${debs[0]}" "$root/next"
sed -i 's/^Version: .*/Version: 99.0.0/' "$root/next/DEBIAN/control"
echo '# of the new version' >>"$root/next/etc/sower/config.yaml"
rm -f "$root/next/DEBIAN/md5sums"
dpkg-deb --build --root-owner-group "$root/next" "$new/next.deb" >/dev/null
inside dpkg --force-confold --install /next.deb >/dev/null 2>&1 || fail 'upgrade'
grep -q '^# mine' "$new/etc/sower/config.yaml" || fail 'the upgrade took the configuration away'
[[ -e $new/var/lib/sower/.runner ]] || fail 'the upgrade took the registration away'
ok 'upgraded, configuration and registration kept'

inside dpkg --remove sower >/dev/null 2>&1 || fail 'remove'
[[ ! -e $new/usr/bin/sower && -e $new/etc/sower/config.yaml && -e $new/var/lib/sower/.runner ]] ||
    fail 'remove left or took the wrong files'
ok 'removed, configuration and registration kept'
inside dpkg --purge sower >/dev/null 2>&1 || fail 'purge'
[[ ! -e $new/etc/sower/config.yaml && ! -e $new/var/lib/sower ]] || fail 'purge left files'
ok 'purged'

new=$root/busybox
mkdir -p "$new"/{bin,etc/sower,etc/init.d}
cp "$(command -v busybox)" "$new/bin/busybox"
chroot "$new" /bin/busybox --install -s /bin
tar -C "$new" -xzf "${tars[0]}"
inside sh -ec '
    cd /sower-*
    install -m 755 sower /bin/sower
    install -m 755 runner-config/sower.initd /etc/init.d/sower
    cp runner-config/config.yaml /etc/sower/
    sh -n /etc/init.d/sower
    sower config check
    # What the health check of the service asks: nobody runs here.
    ! sower status --quiet
    # It looks at what there is, and says what is not.
    sower doctor | grep -q "not on PATH"' >/dev/null || fail 'the tarball in a chroot with busybox'
ok 'the tarball with busybox only'
echo "$passed passed, 0 failed"
