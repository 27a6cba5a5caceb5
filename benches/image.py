#!/usr/bin/env python3
"""The figures of `sower image push`, in turn with those of skopeo and, if it is given, crane.

Everything goes to Debian's docker-registry on loopback. The image is a docker-archive with one layer of store paths,
made of programs and libraries of this machine, which compress as programs do. Exits 1 when a goal is missed.
"""
import argparse, hashlib, io, json, os, pathlib, resource, shutil, signal, socket, statistics, subprocess, sys, tarfile, tempfile, threading, time

BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"


def store_name(key, name):
    digest = hashlib.sha256(key.encode()).digest()
    return "".join(BASE32[b % 32] for b in digest[:32]) + "-" + name


def real_files():
    """Programs and libraries, sorted by name, so that the same machine gives the same image."""
    found = []
    for top in ["/usr/lib/x86_64-linux-gnu", "/usr/lib/ghc", "/usr/bin", "/usr/sbin", "/usr/lib"]:
        for folder, folders, files in os.walk(top):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) > 0:
                    found.append((os.path.getsize(path), path))
        if sum(size for size, _ in found) > 3 << 30:
            break
    return found


def header(name, kind=tarfile.REGTYPE, size=0, mode=0o444, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.mtime, info.linkname = kind, size, mode, 1, link
    return info.tobuf(tarfile.GNU_FORMAT)


class Hashing:
    def __init__(self, out):
        self.out, self.sha, self.length = out, hashlib.sha256(), 0

    def write(self, data):
        self.out.write(data)
        self.sha.update(data)
        self.length += len(data)


def make_image(path, size, version="one"):
    """Store paths whose sizes fall off as Nix's do: few large, many small; 2 % of the bytes are the application's."""
    files = real_files()
    files.sort(key=lambda entry: hashlib.sha256(entry[1].encode()).digest())
    count = 220
    weights = [1 / (n + 1.5) for n in range(count)]
    share = size * 0.98 / sum(weights)
    paths, at = [], 0
    for n, weight in enumerate(weights):
        want, members = share * weight, []
        while want > 0 and len(members) < 400:
            length, file = files[at % len(files)]
            at += 1
            if length > want * 1.3 + 4096 and len(members) < 399 and at < 50 * len(files):
                continue
            members.append((f"lib/{len(members)}-{os.path.basename(file)}", file))
            want -= length
        paths.append((store_name(f"path{n}", f"path-{n}-1.0"), members))
    app = store_name("app" + version, "app-0.1")
    ends = [(store_name("static" + version, "app-static"), [("app.js", f"console.log('{version}');\n".encode() * 200)])]
    layer = pathlib.Path(str(path) + ".layer")
    with open(layer, "wb") as out:
        out = Hashing(out)
        out.write(header("nix/", tarfile.DIRTYPE, mode=0o555))
        out.write(header("nix/store/", tarfile.DIRTYPE, mode=0o555))
        binary = b""
        for _, file in sorted(files)[-40:]:
            binary += open(file, "rb").read()[: int(size * 0.02) - len(binary)]
            if len(binary) >= int(size * 0.02):
                break
        program = binary[: len(binary) // 2] + f"\nversion {version}\n".encode() + binary[len(binary) // 2 :]
        everything = paths + ends + [(app, [("bin/server", program)])]
        for name, members in sorted(everything):
            out.write(header(f"nix/store/{name}/", tarfile.DIRTYPE, mode=0o555))
            done = set()
            for inner, content in sorted(members):
                folder = os.path.dirname(inner)
                if folder and folder not in done:
                    done.add(folder)
                    out.write(header(f"nix/store/{name}/{folder}/", tarfile.DIRTYPE, mode=0o555))
                data = content if isinstance(content, bytes) else open(content, "rb").read()
                out.write(header(f"nix/store/{name}/{inner}", size=len(data), mode=0o555))
                out.write(data)
                out.write(b"\0" * (-len(data) % 512))
        out.write(header("bin", tarfile.SYMTYPE, mode=0o777, link=f"/nix/store/{app}/bin"))
        out.write(b"\0" * 1024)
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:01Z",
        "config": {"Cmd": [f"/nix/store/{app}/bin/server"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + out.sha.hexdigest()]},
        "history": [{"created": "1970-01-01T00:00:01Z"}],
    }).encode()
    name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": name, "RepoTags": ["app:" + version], "Layers": ["l/layer.tar"]}]).encode()
    with open(path, "wb") as archive:
        for member, data in [(name, config), ("manifest.json", manifest)]:
            archive.write(header(member, size=len(data)) + data + b"\0" * (-len(data) % 512))
        archive.write(header("l/layer.tar", size=layer.stat().st_size))
        with open(layer, "rb") as source:
            shutil.copyfileobj(source, archive, 1 << 20)
        archive.write(b"\0" * (-layer.stat().st_size % 512) + b"\0" * 1024)
    layer.unlink()


class Registry:
    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = "127.0.0.1:%d" % probe.getsockname()[1]
        config = folder / "config.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {folder}/data}}\n"
            f"http: {{addr: {self.address}}}\n")
        self.child = subprocess.Popen(["docker-registry", "serve", str(config)], stdin=subprocess.DEVNULL,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                      env=dict(os.environ, OTEL_TRACES_EXPORTER="none"))
        for _ in range(600):
            try:
                socket.create_connection(tuple([self.address.split(":")[0], int(self.address.split(":")[1])])).close()
                return
            except OSError:
                time.sleep(0.05)
        sys.exit("docker-registry does not answer")

    def cpu(self):
        fields = open(f"/proc/{self.child.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.child.kill()
        self.child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Measured:
    def __init__(self, wall, cpu, rss, written, out):
        self.wall, self.cpu, self.rss, self.written, self.out = wall, cpu, rss, written, out


def run(command, env=None, shell=False):
    """Wall, CPU and peak memory of the whole command, and what it wrote to disk."""
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    began = time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                             env=dict(os.environ, **(env or {})), shell=shell)
    written, peak, over = 0, 0, threading.Event()

    def watch():
        """Seldom, and beside the waiting: looking takes from the cores that are measured."""
        nonlocal written, peak
        while not over.wait(0.01):
            try:
                for line in open(f"/proc/{child.pid}/io"):
                    if line.startswith("write_bytes"):
                        written = int(line.split()[1])
                # Not ru_maxrss: that counts what this program had when it started the other.
                for line in open(f"/proc/{child.pid}/status"):
                    if line.startswith("VmHWM"):
                        peak = int(line.split()[1])
            except OSError:
                pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - began
    over.set()
    watcher.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    out.seek(0)
    err.seek(0)
    if child.returncode != 0:
        sys.exit(f"{command}: exit {child.returncode}: {err.read()[-2000:].decode(errors='replace')}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, peak / 1000, written, out.read())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sower", required=True)
    parser.add_argument("--crane")
    parser.add_argument("--size", type=int, default=370, help="of the image, in MB")
    parser.add_argument("--big", type=int, default=2000, help="of the image whose memory is measured, in MB; 0: none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where images are made; kept")
    parser.add_argument("--only", default="", help="rows, by their letters")
    args = parser.parse_args()
    sower = os.path.abspath(args.sower)
    folder = pathlib.Path(args.folder or tempfile.mkdtemp(prefix="sower-bench-"))
    folder.mkdir(exist_ok=True)
    one, two = folder / "one.tar", folder / "two.tar"
    packed, two_packed = folder / "one.tar.gz", folder / "two.tar.gz"
    for path, version in [(one, "one"), (two, "two")]:
        if not path.exists():
            make_image(path, args.size * 1_000_000, version)
    for plain, path in [(one, packed), (two, two_packed)]:
        if not path.exists():
            with open(path, "wb") as out:
                subprocess.run(["gzip", "-n", "-c", str(plain)], stdout=out, check=True)
    print(f"image {one.stat().st_size / 1e6:.0f} MB, gzip'd {packed.stat().st_size / 1e6:.0f} MB, {os.cpu_count()} cores")
    time.sleep(0 if args.folder else 2.5)
    missed = []
    caches = tempfile.TemporaryDirectory(prefix="caches-", dir=folder)

    def row(name, goal, value, limit, unit=""):
        good = value <= limit
        print(f"{'ok  ' if good else 'MISS'} {name:<58} {value:8.3f}{unit}  goal <= {limit}{unit}  {goal}", flush=True)
        if not good:
            missed.append(name)

    def fresh():
        return Registry(pathlib.Path(tempfile.mkdtemp(prefix="sower-registry-", dir=folder)))

    def cache():
        return {"SOWER_CACHE_DIR": tempfile.mkdtemp(dir=caches.name), "TMPDIR": str(folder)}

    def push(registry, source, env, *more):
        return run([sower, "image", "push", str(source), f"{registry.address}/shop/app:t", "--plain-http", "--json",
                    *more], env)

    def skopeo(registry, source):
        return run(["skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false",
                    f"docker-archive:{source}", f"docker://{registry.address}/shop/app:t"], {"TMPDIR": str(folder)})

    def crane(registry, source):
        return run([args.crane, "push", "--insecure", str(source), f"{registry.address}/shop/app:t"])

    def size_there(registry):
        raw = run(["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.address}/shop/app:t"])
        return sum(layer["size"] for layer in json.loads(raw.out)["layers"])

    def on_fresh(action):
        registry = fresh()
        try:
            before = registry.cpu()
            result = action(registry)
            result.registry_cpu = registry.cpu() - before
            result.size = size_there(registry)
            return result
        finally:
            registry.stop()

    def paired(ours, theirs):
        """In turn; the median of each, and of the ratio of neighbours."""
        mine, others = [], {name: [] for name in theirs}
        for _ in range(args.rounds):
            mine.append(on_fresh(ours))
            for name, action in theirs.items():
                others[name].append(on_fresh(action))
        for name, results in [("sower", mine), *others.items()]:
            print(f"     {name:<10} wall {statistics.median(r.wall for r in results):6.2f} s "
                  f"(min {min(r.wall for r in results):.2f})  cpu {statistics.median(r.cpu for r in results):6.2f} s  "
                  f"rss {max(r.rss for r in results):6.1f} MB  written {max(r.written for r in results) / 1e6:.3f} MB  "
                  f"size {results[0].size / 1e6:.1f} MB")
        best = min(others, key=lambda name: statistics.median(r.wall for r in others[name]))
        ratio = statistics.median(a.wall / b.wall for a, b in zip(mine, others[best]))
        cpu = statistics.median(a.cpu / b.cpu for a, b in zip(mine, others[best]))
        return best, ratio, cpu, mine, others[best]

    peers = {"skopeo": lambda registry: skopeo(registry, one)}
    packed_peers = {"skopeo": lambda registry: unpacked(registry, skopeo)}
    if args.crane:
        peers["crane"] = lambda registry: crane(registry, one)
        packed_peers["crane"] = lambda registry: unpacked(registry, crane)

    def unpacked(registry, peer):
        """No peer reads a gzip'd docker-archive; unpacking is part of the way."""
        plain = folder / "unpacked.tar"
        first = run(f"gzip -dc {packed} > {plain}", shell=True)
        second = peer(registry, plain)
        plain.unlink()
        second.wall += first.wall
        second.cpu += first.cpu
        return second

    wanted = lambda letter: not args.only or letter in args.only
    firsts = []
    if wanted("a"):
        print("a. first push, plain, layers kept")
        best, wall, cpu, mine, theirs = paired(lambda r: push(r, one, cache(), "--layers", "keep"), peers)
        row(f"first push, wall against {best}", "", wall, 0.5, " x")
        row("  CPU", "", cpu, 1.0, " x")
        row("  compressed size", "", mine[0].size / theirs[0].size, 1.05, " x")
        row("  peak memory", "", max(r.rss for r in mine), 24, " MB")
        row("  written to disk", "", max(r.written for r in mine) / 1e6, 0.1, " MB")
    if wanted("b"):
        print("b. first push, gzip'd")
        best, wall, cpu, mine, theirs = paired(lambda r: push(r, packed, cache(), "--layers", "keep"), packed_peers)
        row(f"first push of the gzip'd form, wall against {best}", "", wall, 0.6, " x")
        row("  peak memory", "", max(r.rss for r in mine), 24, " MB")
        best, wall, cpu, mine, theirs = paired(lambda r: push(r, packed, cache()), packed_peers)
        row(f"  the same, split by store paths, against {best}", "", wall, 0.6, " x")
        row("  peak memory", "", max(r.rss for r in mine), 24, " MB")
    if wanted("c"):
        print("c. second pushes, split by store paths")
        again, changed, moved, rss = [], [], [], []
        again_packed, changed_packed = [], []
        for _ in range(args.rounds):
            registry, env = fresh(), cache()
            first = push(registry, one, env)
            same = push(registry, one, env)
            next_one = push(registry, two, env)
            report = json.loads(next_one.out)
            again.append(same.wall / first.wall)
            changed.append(next_one.wall / first.wall)
            moved.append(report["uploaded"] / report["size"])
            rss.append(max(first.rss, same.rss, next_one.rss))
            registry.stop()
            registry, env = fresh(), cache()
            first_packed = push(registry, packed, env)
            again_packed.append(push(registry, packed, env).wall / first_packed.wall)
            next_packed = push(registry, two_packed, env)
            changed_packed.append(next_packed.wall / first_packed.wall)
            rss.append(max(first_packed.rss, next_packed.rss))
            registry.stop()
        print(f"     first {first.wall:.2f} s, again {same.wall:.3f} s, one line changed {next_one.wall:.3f} s, "
              f"{len(report['layers'])} layers, {report['uploaded'] / 1e6:.2f} of {report['size'] / 1e6:.1f} MB")
        row("push again, nothing changed", "of the first's wall", statistics.median(again), 0.05, " x")
        row("push again, gzip'd, nothing changed", "of the first's wall", statistics.median(again_packed), 0.05, " x")
        row("push after one line, bytes", "of the image", statistics.median(moved), 0.05, " x")
        row("push after one line, wall", "of the first's", statistics.median(changed), 0.15, " x")
        # Unpacking it takes a quarter of the first push, whatever is new.
        print(f"     push after one line, gzip'd, wall: {statistics.median(changed_packed):.3f} x of the first's, no goal")
        row("  peak memory", "", max(rss), 24, " MB")
    if wanted("d") and args.big:
        print(f"d. memory of a push of {args.big} MB")
        big = folder / "big.tar"
        if not big.exists():
            make_image(big, args.big * 1_000_000)
        for more in [["--layers", "keep"], []]:
            result = on_fresh(lambda r: push(r, big, cache(), *more))
            row(f"peak memory {' '.join(more)}", f"{result.wall:.1f} s", result.rss, 24, " MB")
            row("  written to disk", "", result.written / 1e6, 0.5, " MB")
    if not args.folder:
        shutil.rmtree(folder, ignore_errors=True)
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
