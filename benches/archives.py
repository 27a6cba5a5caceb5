#!/usr/bin/env python3
"""The figures of static archives: the real libHSghc-9.10.3 (291 MB), beside ar and sha256sum in the same run.

Pairs run in turn on the same files and the median counts. Prints a table; exits 1 when a goal is missed.

    benches/archives.py --sower target/…/release/sower --archive target/parts/libHSghc.a
"""

import argparse
import http.server
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CUT = 287_686_318
MEGABYTE = 1_000_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sower", type=Path, required=True, help="the release binary")
    parser.add_argument("--archive", type=Path, required=True, help="the large archive (scripts/parts.sh archives)")
    parser.add_argument("--runs", type=int, default=7, help="runs of each, the median counts (default 7)")
    parser.add_argument("--kills", type=int, default=200, help="moments at which a mend is killed (default 200)")
    parser.add_argument("--only", help="only the figures whose name holds this word: check, hash, closure, http, kill")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.runs} runs each, medians", flush=True)
    with tempfile.TemporaryDirectory(prefix=".archives-", dir=args.archive.resolve().parent) as scratch:
        bench = Bench(args, Path(scratch))
        for name in ("check", "hash", "closure", "http", "kill"):
            if not args.only or name in args.only:
                getattr(bench, name)()
    sys.exit(1 if bench.missed else 0)


class Bench:
    def __init__(self, args, scratch):
        self.args, self.scratch, self.missed = args, scratch, 0
        self.sower = str(args.sower.resolve())
        self.archive = args.archive.resolve()
        self.environment = os.environ | {
            "HOME": str(scratch), "SOWER_CACHE_DIR": str(scratch / "cache"), "SOWER_STATE_DIR": str(scratch / "state"),
        }

    def row(self, what, unit, ours, goal, peer=None):
        met = ours <= goal
        self.missed += not met
        beside = f"peer {peer:.3f}  " if peer is not None else ""
        print(f"{what:<52} {ours:>9.3f} {unit:<3} {beside}goal {goal:.3f}  {'ok' if met else 'MISSED'}", flush=True)

    def run(self, command, expected=(0,)):
        began = time.perf_counter()
        ended = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, cwd=self.scratch, check=False)
        taken = time.perf_counter() - began
        if ended.returncode not in expected:
            sys.exit(f"{command} ended with {ended.returncode}:\n{ended.stdout.decode(errors='replace')[-2000:]}")
        return taken

    def paired(self, ours, theirs):
        times = [[], []]
        for command in (ours, theirs):
            self.run(command)
        for _ in range(self.args.runs):
            for taken, command in zip(times, (ours, theirs)):
                taken.append(self.run(command))
        return [statistics.median(taken) for taken in times]

    def check(self):
        ours, ar = self.paired([self.sower, "archive", "check", str(self.archive)], ["ar", "t", str(self.archive)])
        self.row("structural check of 291 MB, warm (peer: ar t)", "s", ours, ar * 1.2, ar)
        peak = peak_rss([self.sower, "archive", "check", str(self.archive)], self.environment)
        self.row("… peak RSS", "MB", peak / MEGABYTE, 8)

    def store(self, tree):
        """Adds a tree to a store of its own, where Nix knows its hash."""
        at = lambda name: str(self.scratch / name)
        self.environment |= {
            "NIX_CONFIG": "experimental-features = nix-command\nbuild-users-group =\nsandbox = false\nsubstituters =\n",
            "NIX_STORE_DIR": at("store"), "NIX_STATE_DIR": at("var"), "NIX_LOG_DIR": at("log"), "NIX_CONF_DIR": at("etc"),
        }
        return subprocess.run(["nix", "store", "add-path", tree], env=self.environment, cwd=self.scratch,
                              stdout=subprocess.PIPE, check=True).stdout.decode().strip()

    def hash(self):
        """In a store, so that there is a hash to compare with; Nix's own answer is a part of the time."""
        (self.scratch / "big").mkdir()
        shutil.copyfile(self.archive, self.scratch / "big" / "libHSghc.a")
        stored = self.store("big") + "/libHSghc.a"
        ours, theirs = self.paired([self.sower, "archive", "check", "--hash", stored], ["sha256sum", stored])
        self.row("check with content hash (peer: sha256sum)", "s", ours, theirs * 1.1, theirs)
        peak = peak_rss([self.sower, "archive", "check", "--hash", stored], self.environment)
        self.row("… peak RSS", "MB", peak / MEGABYTE, 8)
        subprocess.run(["chmod", "-R", "u+w", str(self.scratch / "store")], check=True)

    def closure(self):
        """300 archives in a store path of a store of its own."""
        tree = self.scratch / "tree"
        tree.mkdir()
        (self.scratch / "x.c").write_text("int x;")
        self.run(["gcc", "-c", "x.c"])
        for index in range(300):
            self.run(["ar", "rcsD", str(tree / f"lib{index}.a"), "x.o"])
        path = self.store("tree")
        command = [self.sower, "archive", "check", "--quiet", "--closure", path]
        first = self.run(command)
        again = statistics.median(self.run(command) for _ in range(self.args.runs))
        print(f"closure of 300 archives, first run {first * 1000:.1f} ms", flush=True)
        self.row("closure of 300 archives, second run", "ms", again * 1000, 50)
        subprocess.run(["chmod", "-R", "u+w", str(self.scratch / "store")], check=True)

    def cut_copy(self):
        copy = self.scratch / "libHSghc.a"
        shutil.copyfile(self.archive, copy)
        os.truncate(copy, CUT)
        return copy

    def http(self):
        copy = self.cut_copy()
        server, sent = serve(self.archive)
        url = f"http://127.0.0.1:{server.server_address[1]}/libHSghc.a"
        taken = self.run([self.sower, "archive", "patch", str(copy), "--from", url])
        server.shutdown()
        same = subprocess.run(["cmp", str(copy), str(self.archive)], check=False).returncode == 0
        print(f"mended over HTTP in {taken:.2f} s, identical: {same}", flush=True)
        self.missed += not same
        self.row("tail mended over HTTP, read from the donor", "MB", sent[0] / MEGABYTE, 5)

    def kill(self):
        """Old or new, never anything else. A smaller archive, so that every moment is tried."""
        whole = self.scratch / "whole.a"
        names = subprocess.run(["ar", "t", str(self.archive)], stdout=subprocess.PIPE, check=True).stdout.decode().split()
        self.run(["ar", "x", str(self.archive), *names[:80]])
        self.run(["ar", "rcsD", str(whole), *names[:80]])
        size = whole.stat().st_size
        content = whole.read_bytes()
        copy = self.scratch / "copy.a"
        command = [self.sower, "archive", "patch", str(copy), "--from", str(whole)]

        def prepare():
            fresh = self.scratch / "fresh"
            shutil.copyfile(whole, fresh)
            os.truncate(fresh, size * 9 // 10)
            fresh.rename(copy)

        prepare()
        longest = self.run(command) * 1.1
        dice, old, new, other = random.Random(8), 0, 0, 0
        for _ in range(self.args.kills):
            prepare()
            child = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(dice.random() * longest)
            child.send_signal(signal.SIGKILL)
            child.wait()
            now = copy.read_bytes()
            if now == content:
                new += 1
            elif now == content[: size * 9 // 10]:
                old += 1
            else:
                other += 1
        left = [path.name for path in self.scratch.iterdir() if path.name.endswith(".sower-mend")]
        print(f"killed {self.args.kills} times within {longest * 1000:.0f} ms: {old} old, {new} new, left behind: {left}")
        self.row("kill -9 of a mend: neither old nor new", "", other, 0)


def peak_rss(command, environment):
    """Peak RSS in bytes, read while it runs: wait4's figure begins with what this interpreter had when it forked."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.execve(command[0], command, environment)
    peak = 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        try:
            if os.readlink(f"/proc/{pid}/exe") == os.path.realpath(command[0]):
                status = Path(f"/proc/{pid}/status").read_text()
                found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
                peak = max(peak, *(int(size) * 1024 for size in found), 0)
        except OSError:
            pass
    return peak


def serve(archive):
    """A server of one file that knows ranges and counts what it sends."""
    sent = [0]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            size = archive.stat().st_size
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            first, last = int(first), min(int(last), size - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            with open(archive, "rb") as file:
                file.seek(first)
                body = file.read(last - first + 1)
            sent[0] += len(body)
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, sent


if __name__ == "__main__":
    main()
