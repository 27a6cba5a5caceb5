#!/usr/bin/env python3
"""Figures of `sower deploy helm` on a real Kubernetes, beside helm alone.

Needs a cluster (`make cluster`), helm and kubectl, docker-registry and busybox:

    benches/deploy.py --sower target/release/sower --kubeconfig target/kubernetes/run/kubeconfig --bin target/parts/bin
"""
import argparse
import io
import json
import hashlib
import os
import signal
import socket
import statistics
import subprocess
import tarfile
import tempfile
import threading
import time

CHART = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "charts", "app")


def image():
    """A busybox, as `docker save` would write it."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for name in ("sh", "httpd", "mkdir", "sleep"):
            link = tarfile.TarInfo("bin/" + name)
            link.type, link.linkname, link.mode = tarfile.SYMTYPE, "busybox", 0o777
            tar.addfile(link)
    layer = layer.getvalue()
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    config = {"architecture": machine, "os": "linux", "config": {},
              "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]}}
    manifest = [{"Config": "config.json", "RepoTags": ["app:1"], "Layers": ["layer.tar"]}]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in (("manifest.json", json.dumps(manifest).encode()),
                              ("config.json", json.dumps(config).encode()), ("layer.tar", layer)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


class Bench:
    def __init__(self, arguments, directory):
        self.arguments = arguments
        self.directory = directory
        self.namespace = f"bench-{int(time.time())}"
        self.environment = dict(os.environ, PATH=os.path.abspath(arguments.bin) + ":" + os.environ["PATH"],
                                KUBECONFIG=os.path.abspath(arguments.kubeconfig),
                                SOWER_STATE_DIR=os.path.join(directory, "state"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = os.path.join(directory, "registry.yml")
        with open(config, "w") as file:
            file.write(f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '127.0.0.1:{self.port}'}}\n"
                       f"storage: {{filesystem: {{rootdirectory: {directory}/registry}}}}\n")
        self.registry = subprocess.Popen(["docker-registry", "serve", config], stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL)
        time.sleep(1)
        path = os.path.join(directory, "image.tar")
        with open(path, "wb") as file:
            file.write(image())
        subprocess.run([arguments.sower, "image", "push", "--plain-http", path, f"127.0.0.1:{self.port}/app:1"],
                       check=True, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def values(self, *more):
        sets = [f"image.repository=127.0.0.1:{self.port}/app", *more]
        return [word for value in sets for word in ("--set", value)]

    def helm(self, *more):
        command = ["helm", "upgrade", "--install", "--wait", "--timeout", "2m", "--create-namespace", "--namespace",
                   self.namespace, *self.values(*more), "app", CHART]
        began = time.monotonic()
        subprocess.run(command, check=True, env=self.environment, stdout=subprocess.DEVNULL)
        return time.monotonic() - began

    def start(self, *more, options=()):
        command = [self.arguments.sower, "deploy", "helm", "app", CHART, "--namespace", self.namespace,
                   "--create-namespace", *options, *self.values(*more)]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def sower(self, *more, options=()):
        """Seconds, kilobytes of its own, exit code, words."""
        began = time.monotonic()
        process = self.start(*more, options=options)
        peak = [0]

        def watch():
            while process.poll() is None:
                try:
                    with open(f"/proc/{process.pid}/status") as status:
                        lines = [line for line in status if line.startswith("VmHWM")]
                    peak[0] = max([peak[0]] + [int(line.split()[1]) for line in lines])
                except OSError:
                    return
                time.sleep(0.02)

        threading.Thread(target=watch, daemon=True).start()
        words = process.stdout.read()
        code = process.wait()
        return time.monotonic() - began, peak[0], code, words

    def overhead(self):
        self.helm()
        self.sower()
        helm, sower, peaks = [], [], []
        for _ in range(self.arguments.rounds):
            helm.append(self.helm())
            seconds, peak, code, words = self.sower()
            assert code == 0, words
            sower.append(seconds)
            peaks.append(peak)
        print(f"helm upgrade --install --wait, nothing to do: median {statistics.median(helm):.2f} s, least {min(helm):.2f}")
        print(f"sower deploy helm, the same:                  median {statistics.median(sower):.2f} s, least {min(sower):.2f}")
        print(f"difference: median {statistics.median(sower) - statistics.median(helm):.2f} s, least {min(sower) - min(helm):.2f}; "
              f"largest RSS of sower {max(peaks) / 1024:.1f} MB", flush=True)

    def early(self):
        """From the cause in the API to the failure reported."""
        for what, options, values, mark in (
            ("image missing", ["--no-checks"], ["image.tag=nope"], "ErrImagePull"),
            ("crash loop", [], ["script=exit 3"], "CrashLoopBackOff"),
            ("hook fails", [], ["hook=exit 3"], "Failed"),
        ):
            seen = []
            watch = subprocess.Popen(["kubectl", "--namespace", self.namespace, "get", "pods", "--watch-only",
                                      "--output", "jsonpath={.metadata.name} {.status.phase} {.status.containerStatuses[0].state.waiting.reason} "
                                      "{.status.containerStatuses[0].restartCount}{\"\\n\"}"],
                                     env=self.environment, stdout=subprocess.PIPE, text=True)

            def follow():
                for line in watch.stdout:
                    often = mark != "CrashLoopBackOff" or line.strip().endswith((" 2", " 3"))
                    if mark in line and often:
                        seen.append(time.monotonic())

            threading.Thread(target=follow, daemon=True).start()
            time.sleep(1)
            process = self.start(*values, options=[*options, "--rollback", "--timeout", "4m"])
            known = explained = None
            for line in process.stdout:
                if line.startswith("failed after "):
                    explained = time.monotonic()
                if known is None and ("does not heal by itself" in line or "hooks failed" in line or "failed: " in line and "helm:" in line):
                    known = time.monotonic()
            ended = time.monotonic()
            process.wait()
            watch.terminate()
            if known and explained and seen:
                print(f"{what}: known {known - seen[0]:.1f} s after the API showed it, explained after {explained - seen[0]:.1f} s, "
                      f"rolled back after {ended - seen[0]:.1f} s", flush=True)
            elif explained:
                # The crash loop is told from the restarts, before the API gives it that name.
                print(f"{what}: explained before the API showed {mark}", flush=True)
            else:
                print(f"{what}: NOT EXPLAINED", flush=True)

    def locks(self):
        """kill -9 of sower and its helm, then the next deployment."""
        self.helm()
        well, seconds = 0, []
        for _ in range(self.arguments.locks):
            process = self.start("hook=sleep 600")
            for line in process.stdout:
                if "app-migrate" in line:
                    break
            children = subprocess.run(["pgrep", "-P", str(process.pid), "helm"], capture_output=True, text=True).stdout.split()
            for pid in [process.pid, *map(int, children)]:
                os.kill(pid, signal.SIGKILL)
            process.wait()
            took, _, code, words = self.sower()
            well += code == 0 and "is freed" in words
            seconds.append(took)
        print(f"lock left by kill -9, next deployment: recovers in {well} of {self.arguments.locks}, median {statistics.median(seconds):.1f} s", flush=True)

    def cancels(self):
        """SIGINT in the middle, then the next deployment."""
        well = 0
        for _ in range(self.arguments.locks):
            process = self.start("hook=sleep 600")
            for line in process.stdout:
                if "app-migrate" in line:
                    break
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            process.wait()
            history = subprocess.run(["helm", "--namespace", self.namespace, "history", "app", "--max", "1", "--output", "json"],
                                     env=self.environment, capture_output=True, text=True).stdout
            well += not json.loads(history)[-1]["status"].startswith("pending")
        print(f"cancelled in the middle: no lock in {well} of {self.arguments.locks}", flush=True)

    def end(self):
        subprocess.run(["kubectl", "delete", "namespace", self.namespace, "--wait=false"], env=self.environment,
                       stdout=subprocess.DEVNULL)
        self.registry.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sower", required=True)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--bin", required=True, help="directory with helm and kubectl")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--locks", type=int, default=20)
    parser.add_argument("what", nargs="*", default=["overhead", "early", "locks", "cancels"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(arguments, directory)
        try:
            for what in arguments.what:
                getattr(bench, what)()
        finally:
            bench.end()


main()
