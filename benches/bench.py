#!/usr/bin/env python3
"""The figures of sower beside those of act and of a bare loop, taken in one run.

Every pair runs in turn (ours, theirs, ours, theirs, …) on the same files and the median counts, so that
a busy machine is unfair to both. Prints a table; exits 1 when a goal is missed.

    benches/bench.py --sower target/…/release/sower --act target/parts/act/bin/act --forge target/debug/sower-forge
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

STEPS = 200
LINES = 1_000_000
MEGABYTE = 1_000_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sower", type=Path, required=True, help="the release binary")
    parser.add_argument("--act", type=Path, help="nektos/act, the peer; without it only goals of our own are measured")
    parser.add_argument("--forge", type=Path, help="the stand-in forge of the demo, for the daemon's figures")
    parser.add_argument("--runs", type=int, default=5, help="runs of each, the median counts (default 5)")
    parser.add_argument("--idle", type=int, default=60, help="seconds that the idle daemon is watched (default 60)")
    args = parser.parse_args()
    for program in filter(None, (args.sower, args.act, args.forge)):
        if not os.access(program, os.X_OK):
            parser.error(f"{program} is not a program")

    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.runs} runs each, medians", flush=True)
    table = Table()
    with tempfile.TemporaryDirectory(prefix="sower-bench-") as scratch:
        bench = Bench(args, Path(scratch), table)
        bench.executor()
        if args.forge:
            bench.daemon()
        table.row("static binary", "MB", args.sower.stat().st_size / MEGABYTE, goal=14.0)
    return table.end()


class Table:
    """Rows of what was measured, against a goal or against a peer times a factor."""

    FORMAT = "{:<46} {:>5} {:>10} {:>10} {:>10}  {}"

    def __init__(self):
        self.missed = 0
        print(self.FORMAT.format("", "unit", "sower", "peer", "goal", ""))

    def row(self, what, unit, ours, peer=None, factor=None, goal=None):
        if peer is not None and factor is not None:
            goal = peer * factor
        met = goal is None or ours <= goal
        self.missed += not met
        verdict = "" if goal is None else ("ok" if met else "MISSED")
        print(self.FORMAT.format(what, unit, number(ours), number(peer), number(goal), verdict), flush=True)

    def end(self):
        if self.missed:
            print(f"{self.missed} goals missed")
        return 1 if self.missed else 0


def number(value):
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


class Bench:
    def __init__(self, args, scratch, table):
        self.args, self.scratch, self.table = args, scratch, table
        self.repository = scratch / "repository"
        self.home = scratch / "home"
        self.home.mkdir()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
        }
        self.make_repository()

    # --- what is run ---------------------------------------------------------------------------

    def make_repository(self):
        """A repository with the workflows, as both programs want one; and the scripts of the bare loop."""
        self.repository.mkdir()
        steps = [f"echo step {i}" for i in range(STEPS)]
        self.workflows = {
            "one": self.workflow("one", ["echo one"]),
            "steps": self.workflow("steps", steps),
            "lines": self.workflow("lines", [f"seq {LINES}"]),
        }
        loop = self.repository / "loop"
        loop.mkdir()
        for i, step in enumerate(steps):
            (loop / f"{i:03}.sh").write_text(step + "\n")
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "bench"]):
            identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
            subprocess.run(["git", *identity, *command], cwd=self.repository, env=self.environment, check=True)

    def workflow(self, name, scripts):
        path = self.repository / f"{name}.yaml"
        steps = "".join(f"      - run: {script}\n" for script in scripts)
        path.write_text(f"on: push\njobs:\n  {name}:\n    runs-on: ubuntu-latest\n    steps:\n{steps}")
        return path

    def sower(self, name):
        return [self.args.sower.resolve(), "exec", "-W", self.workflows[name], "-P", "ubuntu-latest=host"]

    def act(self, name):
        return [self.args.act.absolute(), "push", "-W", self.workflows[name], "-P", "ubuntu-latest=-self-hosted"]

    def loop(self):
        script = 'for f in loop/*.sh; do bash --noprofile --norc -e -o pipefail "$f"; done'
        return ["bash", "--noprofile", "--norc", "-c", script]

    # --- executor ------------------------------------------------------------------------------

    def executor(self):
        peers = [self.act] if self.args.act else []
        for name, what, factor in (
            ("steps", f"exec, {STEPS} echo steps, wall", 0.5),
            ("lines", f"exec, {LINES:,} lines, wall", 0.25),
        ):
            ours, *theirs = self.paired([self.sower(name), *[peer(name) for peer in peers]])
            self.table.row(f"{what} (peer: act)", "s", ours, *(theirs or [None]), factor)
        ours, bare = self.paired([self.sower("steps"), self.loop()])
        self.table.row(f"exec, {STEPS} echo steps, wall (peer: bare loop)", "s", ours, bare, 1.5)
        (ours,) = self.paired([self.sower("one")])
        self.table.row("exec, one echo step, wall", "ms", ours * 1000, goal=60)

        ours = self.peak(self.sower("lines"))
        peer = self.peak(self.act("lines")) if self.args.act else None
        self.table.row(f"exec, {LINES:,} lines, peak RSS (peer: act)", "MB", ours, peer, 0.5)

    def paired(self, commands):
        """Median wall time in seconds of each command, run in turn."""
        times = [[] for _ in commands]
        for command in commands:
            self.run(command)
        for _ in range(self.args.runs):
            for taken, command in zip(times, commands):
                taken.append(self.run(command))
        return [statistics.median(taken) for taken in times]

    def run(self, command):
        with open(self.scratch / "output", "wb") as output:
            began = time.perf_counter()
            ended = subprocess.run(
                command, cwd=self.repository, env=self.environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, check=False,
            )
            taken = time.perf_counter() - began
        if ended.returncode != 0:
            sys.exit(f"{command} failed:\n{(self.scratch / 'output').read_text(errors='replace')[-2000:]}")
        return taken

    def peak(self, command):
        """Peak RSS in MB of the program and of the same program's children, each counted in full."""
        with open(self.scratch / "output", "wb") as output:
            child = subprocess.Popen(
                command, cwd=self.repository, env=self.environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT,
            )
            watch = Watch(child.pid, os.path.realpath(command[0]))
            child.wait()
        return watch.end() / MEGABYTE

    # --- daemon --------------------------------------------------------------------------------

    def daemon(self):
        forge = subprocess.Popen(
            [self.args.forge.resolve()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=self.environment,
        )
        try:
            url, token = forge.stdout.readline().split()
            state = self.scratch / "runner"
            state.mkdir()
            register = [self.args.sower.resolve(), "register", "--no-interactive", "--instance", url, "--token", token,
                        "--name", "bench", "--labels", "ubuntu-latest:host"]
            subprocess.run(register, cwd=state, env=self.environment, check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            with open(self.scratch / "daemon.log", "wb") as log:
                daemon = subprocess.Popen([self.args.sower.resolve(), "daemon"], cwd=state, env=self.environment,
                                          stdout=log, stderr=log)
            try:
                self.idle(daemon.pid)
                self.job(daemon.pid, forge)
            finally:
                daemon.terminate()
                daemon.wait()
        finally:
            forge.stdin.close()
            forge.wait()

    def idle(self, pid):
        time.sleep(2)
        before = cpu(pid)
        time.sleep(self.args.idle)
        per_minute = (cpu(pid) - before) * 60 / self.args.idle
        self.table.row(f"daemon idle, RSS after {self.args.idle} s", "MB", memory(pid, "VmRSS") / MEGABYTE, goal=10)
        self.table.row("daemon idle, CPU a minute", "ms", per_minute * 1000, goal=20)

    def job(self, pid, forge):
        watch = Watch(pid, os.path.realpath(self.args.sower), descendants_only=True)
        forge.stdin.write(f"{self.workflows['lines']}\n")
        forge.stdin.flush()
        result = forge.stdout.readline().strip()
        if result != "success":
            sys.exit(f"the job of {LINES} lines ended with: {result}")
        self.table.row(f"job process, {LINES:,} lines, peak RSS", "MB", watch.end() / MEGABYTE, goal=12)


class Watch(threading.Thread):
    """Follows the peak RSS of a process and of those of its descendants that run the same program.

    wait4 would say it, too, but its figure begins with what this interpreter had when it forked.
    """

    def __init__(self, pid, program, descendants_only=False):
        super().__init__(daemon=True)
        self.pid, self.program, self.descendants_only = pid, program, descendants_only
        self.peaks = {}
        self.stopping = threading.Event()
        self.start()

    def run(self):
        while not self.stopping.wait(0.01):
            for pid in tree(self.pid):
                if pid == self.pid and self.descendants_only:
                    continue
                try:
                    if os.readlink(f"/proc/{pid}/exe") == self.program:
                        self.peaks[pid] = max(self.peaks.get(pid, 0), memory(pid, "VmHWM"))
                except OSError:
                    pass

    def end(self):
        self.stopping.set()
        self.join()
        return sum(self.peaks.values())


def tree(pid):
    """The process and its descendants."""
    found = [pid]
    for parent in found:
        try:
            for thread in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{thread}/children").read_text().split())
        except OSError:
            pass
    return found


def memory(pid, key):
    """A figure of /proc/PID/status in bytes; 0 when the process is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def cpu(pid):
    """CPU seconds of all threads so far, to the nanosecond."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


if __name__ == "__main__":
    sys.exit(main())
