#!/usr/bin/env python3
"""The figures of the workflow language and of the built-in actions.

Where two things are compared they run in turn (one, other, one, other, …) and the median counts, so that a busy
machine is unfair to both. Prints a table; exits 1 when a goal is missed.

    benches/language.py --sower target/…/release/sower [--act-data …/act/pkg/runner/testdata] [--actions MIRROR]

MIRROR is a folder with clones of actions/checkout, actions/cache, actions/upload-artifact and
actions/download-artifact, whose originals node runs.
"""

import argparse
import http.server
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
from bench import Table

ROWS = 1_000_000
MASKS = 100
EXPRESSIONS = 100_000
TOKEN = "t" * 40


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sower", type=Path, required=True, help="the release binary")
    parser.add_argument("--act-data", type=Path, help="nektos/act's pkg/runner/testdata, to check all of it")
    parser.add_argument("--actions", type=Path, help="clones of the original actions, to compare the built-in ones")
    parser.add_argument("--runs", type=int, default=5, help="runs of each, the median counts (default 5)")
    args = parser.parse_args()
    args.sower = args.sower.resolve()
    if not os.access(args.sower, os.X_OK):
        parser.error(f"{args.sower} is not a program")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.runs} runs each, medians", flush=True)
    table = Table()
    with tempfile.TemporaryDirectory(prefix="sower-bench-") as scratch:
        bench = Bench(args, Path(scratch), table)
        bench.check()
        bench.expressions()
        bench.masking()
        if args.actions:
            bench.actions()
    return table.end()


class Bench:
    def __init__(self, args, scratch, table):
        self.args, self.scratch, self.table = args, scratch, table
        (scratch / "home").mkdir()
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(scratch / "home"), "LANG": "C.UTF-8"}

    def wall(self, command, codes=(0,), **more):
        """Seconds that a command takes."""
        with open(self.scratch / "output", "wb") as output:
            began = time.perf_counter()
            more = {"cwd": self.scratch, "env": self.environment, "stdin": subprocess.DEVNULL, **more}
            ended = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False, **more)
            taken = time.perf_counter() - began
        if ended.returncode not in codes:
            sys.exit(f"{command} failed:\n{(self.scratch / 'output').read_text(errors='replace')[-2000:]}")
        return taken

    def medians(self, *tasks):
        """Median seconds of each task, run in turn after one run that does not count."""
        times = [[] for _ in tasks]
        for turn in range(self.args.runs + 1):
            for taken, task in zip(times, tasks):
                seconds = task()
                if turn:
                    taken.append(seconds)
        return [statistics.median(taken) for taken in times]

    def check(self):
        workflow = self.scratch / "large.yaml"
        workflow.write_text(large_workflow(2_000))
        (seconds,) = self.medians(lambda: self.wall([self.args.sower, "check", workflow]))
        self.table.row("check, a workflow of 2,000 lines, wall", "ms", seconds * 1000, goal=10)
        if self.args.act_data:
            data = self.args.act_data.resolve()
            files = sorted(path for path in data.rglob("*") if path.suffix in (".yml", ".yaml") and path.is_file())
            # Some of it is wrong on purpose.
            (seconds,) = self.medians(lambda: self.wall([self.args.sower, "check", *files], codes=(0, 1)))
            self.table.row(f"check, the {len(files)} files of act's test data, wall", "s", seconds, goal=1)

    def expressions(self):
        batch = self.scratch / "batch"
        with open(batch, "w", encoding="utf-8") as out:
            for number in range(EXPRESSIONS):
                out.write(json.dumps(question(number)) + "\n")

        def once():
            with open(batch, "rb") as asked:
                return self.wall([self.args.sower, "eval", "--batch"], stdin=asked)

        (seconds,) = self.medians(once)
        self.table.row(f"eval --batch, {EXPRESSIONS:,} expressions, wall", "s", seconds, goal=1)

    def masking(self):
        rows = self.scratch / "rows"
        secrets = {f"SECRET_{number}": secret(number) for number in range(MASKS)}
        with open(rows, "w", encoding="utf-8") as out:
            for number in range(ROWS):
                shown = f" token={secret(number // 1000 % MASKS)}" if number % 1000 == 7 else ""
                out.write(f"[{number % 997:>3} of 997] Compiling Data.Module{number % 89} ( src/Data/File.hs ){shown}\n")
        workflow = self.scratch / "rows.yaml"
        workflow.write_text(
            f"on: push\njobs:\n  rows:\n    runs-on: host\n    steps:\n      - run: cat {rows}\n"
        )
        given = self.scratch / "secrets"
        given.write_text("".join(f"{name}={value}\n" for name, value in secrets.items()))
        plain = [self.args.sower, "exec", "-W", workflow]
        masked, bare = self.medians(
            lambda: self.wall([*plain, "--secret-file", given]), lambda: self.wall(plain)
        )
        self.table.row(f"{ROWS:,} rows, {MASKS} masks, wall (peer: no masks)", "s", masked, bare, 1.3)
        self.wall([*plain, "--secret-file", given])
        text = (self.scratch / "output").read_text()
        left = [value for value in secrets.values() if value in text]
        if left or text.count("token=***") != ROWS // 1000:
            sys.exit(f"{len(left)} of {MASKS} secrets are in the log")

    def actions(self):
        forge = Forge(self.scratch / "forge", self.environment)
        tree = self.scratch / "tree"
        (tree / ".gitea/workflows").mkdir(parents=True)
        (tree / ".gitea/workflows/test.yaml").write_text(ACTIONS)
        git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        for command in (
            ["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "bench"],
            ["remote", "add", "origin", f"{forge.url}/dev/app.git"],
        ):
            subprocess.run([*git, *command], cwd=tree, env=self.environment, check=True)
        mirror = f"https://github.com/actions={self.args.actions.resolve().as_uri()}"
        homes = {native: self.scratch / f"home-{native}" for native in ("always", "never")}
        count = 0

        def once(native):
            nonlocal count
            count += 1
            # The actions are fetched by the first run, which does not count.
            return self.wall(
                [self.args.sower, "exec", "--native", native, "--mirror", mirror, "-s", f"GITHUB_TOKEN={TOKEN}",
                 "--var", f"N={count}"],
                cwd=tree, env={**self.environment, "HOME": str(homes[native])},
            )

        for home in homes.values():
            home.mkdir()
        ours, theirs = self.medians(lambda: once("always"), lambda: once("never"))
        self.table.row("checkout + cache + artifact, wall (peer: node)", "s", ours, theirs, 0.3)


def secret(number):
    return f"{(number * 2_654_435_761 + 97) % 2**32:08x}Q{(number * 40_503 + 7) % 2**16:04x}w{number:03}Zt"


def question(number):
    """One of a few kinds of expressions that workflows are full of."""
    kinds = (
        ("github.ref == 'refs/heads/main' && !cancelled()", {"github": {"ref": "refs/heads/main"}}),
        ("format('{0}-{1}', runner.os, hashFiles('nothing'))", {"runner": {"os": "Linux"}}),
        (f"contains(fromJSON('[1, 2, {number}]'), {number})", {}),
        ("matrix.os[1] || toJSON(matrix)", {"matrix": {"os": ["a", "b"], "n": number}}),
        ("join(github.event.commits.*.message, ', ')", {"github": {"event": {"commits": [{"message": "m"}] * 3}}}),
    )
    expression, context = kinds[number % len(kinds)]
    return {"expr": f"${{{{ {expression} }}}}" if number % 2 else expression, "context": context}


def large_workflow(lines):
    text = "on:\n  push:\n    branches: [main, 'release/**']\nenv:\n  LEVEL: ${{ vars.LEVEL || 'info' }}\njobs:\n"
    job = 0
    while text.count("\n") < lines - 20:
        needs = f"    needs: [job{job - 1}]\n" if job else ""
        text += (
            f"  job{job}:\n    runs-on: ${{{{ matrix.os }}}}\n{needs}    strategy:\n      matrix:\n"
            f"        os: [ubuntu-latest, debian]\n        ghc: ['9.10', 9.8]\n    outputs:\n"
            f"      made: ${{{{ steps.make.outputs.made }}}}\n    steps:\n      - uses: actions/checkout@v4\n"
            f"        with: {{fetch-depth: 0}}\n      - id: make\n        if: github.event_name == 'push' && success()\n"
            f"        env:\n          TOKEN: ${{{{ secrets.TOKEN }}}}\n        run: |\n"
            f"          echo made=${{{{ matrix.ghc }}}} >> $GITHUB_OUTPUT\n          make all\n"
        )
        job += 1
    return text


ACTIONS = """
on: push
jobs:
  all:
    runs-on: host
    steps:
      - uses: actions/checkout@v4
        with: {repository: dev/other, path: src, fetch-depth: 0}
      - uses: actions/cache@v4
        with: {path: deps, key: "k-${{ vars.N }}", restore-keys: k-}
      - run: mkdir -p deps out; head -c 3000000 /dev/urandom > deps/a; cp -r src/docs out; head -c 1000000 /dev/zero > out/z
      - uses: actions/upload-artifact@v4
        with: {name: out, path: out}
      - uses: actions/download-artifact@v4
        with: {name: out, path: got}
"""


class Forge:
    """A repository behind HTTP, as `git http-backend` serves it. Lives as long as this process."""

    def __init__(self, root, environment):
        work = root / "work"
        (work / "docs").mkdir(parents=True)
        (work / "docs/page").write_text("page\n")
        bare = root / "dev/other.git"
        git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
            subprocess.run([*git, *command], cwd=work, env=environment, check=True)
        subprocess.run(["git", "clone", "-q", "--bare", work, bare], env=environment, check=True)
        subprocess.run(["git", "-C", bare, "config", "uploadpack.allowAnySHA1InWant", "true"], check=True)

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, code, data, headers):
                self.send_response(code)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def serve(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path, _, query = self.path.partition("?")
                if path.startswith("/api/"):
                    repository = {"default_branch": "main", "object_format_name": "sha1"}
                    return self.answer(200, json.dumps(repository).encode(), {"Content-Type": "application/json"})
                path = path if "/other.git/" in path else path.replace("/other/", "/other.git/")
                backend = subprocess.run(
                    ["git", "http-backend"], input=body, stdout=subprocess.PIPE, check=False,
                    env={
                        **environment, "GIT_PROJECT_ROOT": str(root), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
                        "QUERY_STRING": query, "REQUEST_METHOD": self.command, "CONTENT_LENGTH": str(len(body)),
                        "CONTENT_TYPE": self.headers.get("Content-Type") or "",
                        "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
                        **({"HTTP_CONTENT_ENCODING": self.headers["Content-Encoding"]}
                           if self.headers.get("Content-Encoding") else {}),
                    },
                )
                head, _, data = backend.stdout.partition(b"\r\n\r\n")
                headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
                return self.answer(int(headers.pop("Status", "200").split()[0]), data, headers)

            do_GET = do_POST = serve

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}"


if __name__ == "__main__":
    sys.exit(main())
