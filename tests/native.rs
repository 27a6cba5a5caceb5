//! Built-in actions: checkout, cache and artifacts in jobs that the real program runs, with no Node.js in sight.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sower::cache::artifacts::Artifacts;
use sower::cache::relay::Relay;
use sower::cache::sign::Signer;
use sower::cache::{Grant, Options, Server, Store};
use sower_test_support::{Forge, Options as ForgeOptions};

/// A working tree, and the program run in it.
struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new(workflow: &str) -> Self {
        let tree = Self { dir: tempfile::tempdir().unwrap() };
        tree.write(".gitea/workflows/test.yaml", workflow);
        tree
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn git(&self, arguments: &[&str]) {
        let done = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
            .args(arguments)
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn committed(self, origin: &str) -> Self {
        self.git(&["init", "--quiet", "-b", "main"]);
        self.git(&["add", "."]);
        self.git(&["commit", "--quiet", "-m", "first"]);
        self.git(&["remote", "add", "origin", origin]);
        self
    }

    /// Runs `sower exec`; gives whether it succeeded and the rows.
    fn exec(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_sower"))
            .args(["exec", "--native", "always"])
            .args(arguments)
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path().join("home"))
            .env_remove("XDG_CACHE_HOME")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text + &String::from_utf8_lossy(&output.stderr))
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let (well, rows) = self.exec(arguments);
        assert!(well, "{rows}");
        rows
    }
}

#[track_caller]
fn says(rows: &str, wanted: &[&str]) {
    for text in wanted {
        assert!(rows.contains(text), "no {text:?} in\n{rows}");
    }
}

#[test]
fn a_cache_is_saved_at_the_end_and_restored_by_the_next_run() {
    let tree = Tree::new(
        r#"
on: push
jobs:
  test:
    runs-on: host
    steps:
      - id: exact
        uses: actions/cache@v4
        with: {path: "deps\n~/.store/*\n!~/.store/skip", key: "deps-${{ vars.N }}", restore-keys: deps-}
      - run: |
          echo "hit=[${{ steps.exact.outputs.cache-hit }}] found=[$(cat deps/a 2>/dev/null)] [$(ls ~/.store 2>/dev/null | tr '\n' ' ')]"
          mkdir -p deps ~/.store
          echo "${{ vars.N }}" > deps/a
          touch ~/.store/one ~/.store/skip
      - id: look
        uses: actions/cache/restore@v4
        with: {path: other, key: none, lookup-only: true}
      - run: echo "look=[${{ steps.look.outputs.cache-primary-key }}] [${{ steps.look.outputs.cache-matched-key }}]"
"#,
    )
    .committed("https://git.example.org/owner/app.git");
    let first = tree.succeeds(&["--var", "N=1"]);
    says(&first, &["Cache not found for input keys: deps-1, deps-", "hit=[] found=[] []"]);
    says(&first, &["Cache saved with key: deps-1", "look=[none] []"]);
    fs::remove_dir_all(tree.dir.path().join("home/.store")).unwrap();
    let second = tree.succeeds(&["--var", "N=1"]);
    says(&second, &["Cache restored from key: deps-1", "hit=[true] found=[1] [one ]"]);
    says(&second, &["Cache hit occurred on the primary key deps-1, not saving cache."]);
    let third = tree.succeeds(&["--var", "N=2"]);
    says(&third, &["hit=[false] found=[1]", "Cache saved with key: deps-2"]);
}

#[test]
fn a_cache_that_must_be_there_fails_the_step() {
    let tree = Tree::new(
        r"
on: push
jobs:
  test:
    runs-on: host
    steps:
      - uses: actions/cache/save@v4
        with: {path: nothing-there, key: k}
      - run: mkdir out && echo x > out/x
      - uses: actions/cache/save@v4
        with: {path: out, key: k}
      - uses: actions/cache/save@v4
        with: {path: out, key: k}
      - uses: actions/cache/restore@v4
        with: {path: out, key: other, fail-on-cache-miss: true}
",
    )
    .committed("https://git.example.org/owner/app.git");
    let (well, rows) = tree.exec(&[]);
    assert!(!well);
    says(&rows, &["Path(s) specified in the action for caching do(es) not exist", "Cache saved with key: k"]);
    says(&rows, &["Unable to reserve cache with key k, another job may be creating this cache"]);
    says(&rows, &["Failed to restore cache entry. Exiting as fail-on-cache-miss is set. Input key: other"]);
}

#[test]
fn artifacts_go_from_job_to_job() {
    for version in ["v3", "v4"] {
        let tree = Tree::new(&format!(
            r#"
on: push
jobs:
  build:
    runs-on: host
    steps:
      - run: mkdir -p out/sub/.git && echo 1 > out/a.txt && echo 2 > out/sub/b.txt && touch out/sub/.git/x out/c.log
      - id: up
        uses: actions/upload-artifact@{version}
        with: {{name: files, path: "out\n!out/**/*.log", retention-days: 3}}
      - uses: actions/upload-artifact@{version}
        with: {{name: one, path: out/a.txt}}
      - uses: actions/upload-artifact@{version}
        with: {{name: nothing, path: missing, if-no-files-found: ignore}}
      - run: echo "digest=[${{{{ steps.up.outputs.artifact-digest }}}}]"
  use:
    needs: build
    runs-on: host
    steps:
      - id: down
        uses: actions/download-artifact@{version}
        with: {{name: files, path: got}}
      - uses: actions/download-artifact@{version}
        with: {{path: all}}
      - run: |
          echo "at=${{{{ steps.down.outputs.download-path }}}}"
          (cd got && find . -type f | sort | tr '\n' ' '; cat sub/b.txt); echo
          (cd all && find . -type f | sort | tr '\n' ' '); echo
"#
        ));
        let rows = tree.succeeds(&[]);
        says(
            &rows,
            &["there will be 2 files uploaded", "No files were found with the provided path: missing"],
        );
        says(&rows, &["./a.txt ./sub/b.txt 2", "./files/a.txt ./files/sub/b.txt ./one/a.txt"]);
        says(&rows, &["/workspace/got"]);
        assert_eq!(rows.contains("digest=[]"), version == "v3", "{rows}");
    }
}

#[test]
fn artifacts_of_version_four_have_patterns_and_can_be_replaced() {
    let tree = Tree::new(
        r#"
on: push
jobs:
  test:
    runs-on: host
    steps:
      - run: echo 1 > a && echo 2 > b && echo 3 > c
      - uses: actions/upload-artifact@v4
        with: {name: part-a, path: a, compression-level: 0}
      - uses: actions/upload-artifact@v4
        with: {name: part-b, path: b, compression-level: 9}
      - uses: actions/upload-artifact@v4
        with: {name: other, path: c}
      - run: echo 4 > a
      - id: again
        uses: actions/upload-artifact@v4
        continue-on-error: true
        with: {name: part-a, path: a}
      - uses: actions/upload-artifact@v4
        with: {name: part-a, path: a, overwrite: true}
      - uses: actions/download-artifact@v5
        with: {pattern: "part-{a,b}", path: merged, merge-multiple: true}
      - run: echo "again=${{ steps.again.outcome }} merged=$(ls merged | tr '\n' ' ')$(cat merged/*|tr '\n' ' ')"
      - uses: actions/download-artifact@v4
        with: {name: missing}
"#,
    );
    let (well, rows) = tree.exec(&[]);
    assert!(!well);
    says(&rows, &["again=failure merged=a b 4 2 "]);
    says(&rows, &["Unable to download artifact(s): Artifact not found for name: missing"]);
}

#[test]
fn a_repository_is_checked_out_with_what_the_inputs_say() {
    let forge = Forge::start(ForgeOptions::default()).unwrap();
    let other = forge.repository("dev/other").unwrap();
    let files = [("README", "one"), ("src/lib/a", "a"), ("docs/b", "b")];
    let first = sower_test_support::push_files(&other.push_url(), "main", &files).unwrap();
    let second =
        sower_test_support::push_files(&other.push_url(), "topic", &[("README", "two"), ("x", "x")]).unwrap();
    let tree = Tree::new(&format!(
        r#"
on: push
jobs:
  test:
    runs-on: host
    steps:
      - id: default
        uses: actions/checkout@v4
        with: {{repository: dev/other, path: default}}
      - run: |
          echo "default=$(cat default/README) branch=$(git -C default rev-parse --abbrev-ref HEAD) same=${{{{ steps.default.outputs.commit == '{first}' }}}} ref=${{{{ steps.default.outputs.ref }}}}"
          echo "auth=$(git -C default config --get-all http.{url}/.extraheader | grep -c basic)"
          git -C default fetch -q origin topic && echo fetched
      - id: topic
        uses: actions/checkout@v5
        with: {{repository: dev/other, ref: topic, path: topic, fetch-depth: 0, persist-credentials: false}}
      - run: |
          echo "topic=$(cat topic/README) ref=${{{{ steps.topic.outputs.ref }}}} $(git -C topic rev-list --count HEAD)"
          echo "none=$(git -C topic config --get-all http.{url}/.extraheader | wc -l)"
      - uses: actions/checkout@v6
        with:
          repository: dev/other
          ref: {first}
          path: sparse
          sparse-checkout: |
            src/lib
      - run: echo "sparse=$(cd sparse && find . -name .git -prune -o -type f -print | sort | tr '\n' ' ')"
      - uses: actions/checkout@v4
        with: {{repository: dev/other, path: sparse2, sparse-checkout: "/docs/*", sparse-checkout-cone-mode: false}}
      - uses: actions/checkout@v5
        with: {{repository: dev/other, path: sparse}}
      - run: echo "whole=$(ls sparse | tr '\n' ' ')"
      - run: echo "plain=$(cd sparse2 && find . -name .git -prune -o -type f -print | sort | tr '\n' ' ')"
      - run: touch topic/untracked && echo changed > topic/README
      - uses: actions/checkout@v4
        with: {{repository: dev/other, ref: main, path: topic}}
      - run: echo "clean=$(cat topic/README) $(ls topic | tr '\n' ' ')"
      - uses: actions/checkout@v6
        with: {{repository: dev/other, path: v6, fetch-depth: "-1", fetch-tags: perhaps}}
      - run: |
          echo "inside=$(grep -c extraheader v6/.git/config) leads=$(git -C v6 config --get-regexp includeif | wc -l)"
          git -C v6 fetch -q origin topic && echo "v6 fetched, $(git -C v6 rev-list --count origin/main) commits, shallow=$(git -C v6 rev-parse --is-shallow-repository)"
      - run: |
          git -C v6 update-ref -d refs/remotes/origin/topic
          git -C v6 update-ref refs/remotes/origin/topic/x HEAD
          touch v6/.git/index.lock
      - uses: actions/checkout@v4
        with: {{repository: dev/other, path: v6, ref: topic}}
      - run: |
          echo "again=$(cat v6/README) one=$(git -C v6 config --get-all http.{url}/.extraheader | wc -l)"
          git -C v6 fetch -q origin main && echo "fetched again"
      - uses: actions/checkout@v4
        with: {{repository: dev/other, ref: nowhere, path: nowhere}}
"#,
        url = forge.url(),
    ))
    .committed(&format!("{}/dev/app.git", forge.url()));
    let token = forge.token();
    let (well, rows) = tree.exec(&["-s", &format!("GITHUB_TOKEN={token}")]);
    assert!(!well);
    assert!(!rows.contains(token), "{rows}");
    says(&rows, &["default=one branch=main same=true ref=refs/heads/main", "auth=1", "fetched"]);
    says(&rows, &["Input fetch-tags: \"perhaps\" is neither true nor false", "inside=0 leads=2"]);
    says(&rows, &["v6 fetched, 1 commits, shallow=false", "again=two one=1", "fetched again"]);
    says(&rows, &["topic=two ref=topic", "none=0"]);
    says(&rows, &["sparse=./README ./src/lib/a ", "plain=./docs/b ", "whole=README docs src "]);
    says(&rows, &["clean=one README docs src", "A branch or tag with the name 'nowhere' could not be found"]);
    says(&rows, &["Removed the credentials from "]);
    assert_ne!(first, second);
}

#[test]
fn artifacts_are_merged_and_files_go_without_an_archive() {
    let tree = Tree::new(
        r#"
on: push
jobs:
  test:
    runs-on: host
    steps:
      - run: echo 1 > a && echo 2 > b && chmod 755 a
      - uses: actions/upload-artifact@v4
        with: {name: part-a, path: a}
      - uses: actions/upload-artifact@v4
        with: {name: part-b, path: b}
      - uses: actions/upload-artifact/merge@v4
        with: {pattern: "part-@(a|b)", name: all, separate-directories: true, delete-merged: true}
      - uses: actions/download-artifact@v5
        with: {path: got}
      - run: echo "merged=$(cd got && find . -type f | sort | tr '\n' ' ')"
      - id: plain
        uses: actions/upload-artifact@v7
        with: {path: b, archive: false}
      - uses: actions/download-artifact@v8
        with: {name: b, path: plain}
      - run: echo "plain=$(ls plain)$(cat plain/b)"
      - uses: actions/download-artifact@v4
        with: {pattern: "al*", path: own}
      - run: echo "own=$(cd own && find . -type f | sort | tr '\n' ' ')"
      - uses: actions/upload-artifact@v4
        with: {name: "", path: a}
"#,
    );
    let (well, rows) = tree.exec(&[]);
    assert!(!well);
    says(&rows, &["merged=./part-a/a ./part-b/b ", "plain=b2", "own=./all/part-a/a ./all/part-b/b "]);
    says(&rows, &["The artifact name is empty"]);
}

#[test]
fn a_pattern_that_finds_folders_and_what_is_in_them_saves_each_file_once() {
    let tree = Tree::new(
        r#"
on: push
jobs:
  test:
    runs-on: host
    steps:
      - run: mkdir -p deps/sub && echo 1 > deps/a && echo 2 > deps/sub/b && ln deps/a deps/same
      - uses: actions/cache/save@v4
        with: {path: "deps/**", key: k}
      - run: rm -r deps
      - uses: actions/cache/restore@v4
        with: {path: "deps/**", key: k}
      - run: echo "found=$(find deps -type f | sort | tr '\n' ' ') links=$(stat -c %h deps/same)"
"#,
    )
    .committed("https://git.example.org/owner/app.git");
    says(&tree.succeeds(&[]), &["found=deps/a deps/same deps/sub/b  links=2"]);
}

/// One request, as a client would make it by hand.
fn ask(server: &str, head: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let address = server.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!(
        "{head} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn serve(directory: &Path) -> Server {
    Server::start(Options {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        store: Some(Store::open(directory, 1 << 20).unwrap()),
        artifacts: None,
        relay: None,
        signer: Signer::open(&directory.join("secret")).unwrap(),
    })
    .unwrap()
}

fn grant(repository: &str, scope: &str) -> Grant {
    Grant {
        repository: repository.to_owned(),
        scope: scope.to_owned(),
        reads: vec![scope.to_owned(), "refs/heads/main".to_owned()],
    }
}

#[test]
fn the_cache_server_tells_jobs_apart_and_outlives_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path());
    server.admit("one", grant("dev/app", "refs/heads/main"));
    server.admit("two", grant("dev/other", "refs/heads/main"));
    let base = "/_apis/artifactcache";
    let bearer = |token: &str| format!("authorization: Bearer {token}\r\n");
    let url = server.url();
    assert_eq!(ask(url, &format!("GET {base}/cache?keys=k&version=v"), "", b"").0, 401);
    assert_eq!(ask(url, &format!("GET {base}/cache?keys=k&version=v"), &bearer("wrong"), b"").0, 401);
    assert_eq!(ask(url, &format!("GET {base}/cache?keys=k&version=v"), &bearer("one"), b"").0, 204);
    let asked = json!({"key": "k", "version": "v", "cacheSize": 6}).to_string();
    let (status, answer) = ask(url, &format!("POST {base}/caches"), &bearer("one"), asked.as_bytes());
    assert_eq!(status, 201, "{answer}");
    let id = serde_json::from_str::<Value>(&answer).unwrap()["cacheId"].as_u64().unwrap();
    let range = |range: &str| format!("{}content-range: bytes {range}/*\r\n", bearer("one"));
    assert_eq!(ask(url, &format!("PATCH {base}/caches/{id}"), &range("3-5"), b"def").0, 204);
    // The next process goes on with what the first one has been sent.
    let next = serve(folder.path());
    next.admit("one", grant("dev/app", "refs/heads/main"));
    next.admit("two", grant("dev/other", "refs/heads/main"));
    next.admit("topic", grant("dev/app", "refs/heads/topic"));
    let url = next.url();
    let other = format!("{}content-range: bytes 0-2/*\r\n", bearer("two"));
    assert_eq!(ask(url, &format!("PATCH {base}/caches/{id}"), &other, b"xxx").0, 404, "another repository");
    assert_eq!(ask(url, &format!("PATCH {base}/caches/{id}"), &range("0-2"), b"abc").0, 204);
    assert_eq!(ask(url, &format!("POST {base}/caches/{id}"), &bearer("one"), b"{\"size\":7}").0, 400);
    assert_eq!(ask(url, &format!("POST {base}/caches/{id}"), &bearer("one"), b"{\"size\":6}").0, 204);
    assert_eq!(ask(url, &format!("POST {base}/caches"), &bearer("one"), asked.as_bytes()).0, 409);
    assert_eq!(ask(url, &format!("GET {base}/cache?keys=k&version=v"), &bearer("two"), b"").0, 204);
    let (status, answer) = ask(url, &format!("GET {base}/cache?keys=x,k&version=v"), &bearer("topic"), b"");
    assert_eq!(status, 200, "{answer}");
    let found: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(found["cacheKey"], "k");
    let location = found["archiveLocation"].as_str().unwrap().strip_prefix(url).unwrap().to_owned();
    assert_eq!(ask(url, &format!("GET {location}"), "", b""), (200, "abcdef".to_owned()));
    assert_eq!(ask(url, &format!("GET {location}"), "range: bytes=2-3\r\n", b""), (206, "cd".to_owned()));
    assert_eq!(ask(url, &format!("GET {location}x"), "", b"").0, 403);
    next.revoke("topic");
    assert_eq!(ask(url, &format!("GET {base}/cache?keys=k&version=v"), &bearer("topic"), b"").0, 401);
}

#[test]
fn the_second_version_of_the_protocol_has_the_same_entries() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path());
    server.admit("one", grant("dev/app", "refs/heads/main"));
    let url = server.url();
    let call = |method: &str, asked: Value| {
        let path = format!("POST /twirp/github.actions.results.api.v1.CacheService/{method}");
        let headers = "authorization: Bearer one\r\ncontent-type: application/json\r\n";
        let (status, answer) = ask(url, &path, headers, asked.to_string().as_bytes());
        (status, serde_json::from_str::<Value>(&answer).unwrap_or_default())
    };
    let look = json!({"key": "a-9", "restore_keys": ["a-"], "version": "v"});
    assert_eq!(call("GetCacheEntryDownloadURL", look.clone()).1["ok"], false);
    let (_, made) = call("CreateCacheEntry", json!({"key": "a-1", "version": "v"}));
    let address = made["signed_upload_url"].as_str().unwrap().strip_prefix(url).unwrap().to_owned();
    for (block, bytes) in [("Mg==", "cd"), ("MQ==", "ab")] {
        let path = format!("PUT {address}&comp=block&blockid={}", block.replace('=', "%3D"));
        assert_eq!(ask(url, &path, "", bytes.as_bytes()).0, 201);
    }
    let list = b"<BlockList><Latest>MQ==</Latest><Latest>Mg==</Latest></BlockList>";
    assert_eq!(ask(url, &format!("PUT {address}&comp=blocklist"), "", list).0, 201);
    let done = call("FinalizeCacheEntryUpload", json!({"key": "a-1", "version": "v", "sizeBytes": "4"}));
    assert_eq!(done.1["ok"], true, "{done:?}");
    let (_, found) = call("GetCacheEntryDownloadURL", look);
    assert_eq!(found["matched_key"], "a-1");
    let location = found["signed_download_url"].as_str().unwrap().strip_prefix(url).unwrap().to_owned();
    assert_eq!(ask(url, &format!("GET {location}"), "", b"").1, "abcd");
    assert_eq!(call("CreateCacheEntry", json!({"key": "a-1", "version": "v"})).1["ok"], false);
    assert_eq!(call("Nothing", json!({})).0, 404);
}

#[test]
fn questions_about_artifacts_are_handed_on_to_who_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let signer = || Signer::open(&folder.path().join("secret")).unwrap();
    let options = |artifacts: Option<Artifacts>, relay: Option<Relay>| Options {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        store: None,
        artifacts,
        relay,
        signer: signer(),
    };
    let keeper = Server::start(options(Some(Artifacts::new(folder.path().join("kept"))), None)).unwrap();
    let between =
        Server::start(options(None, Some(Relay::new(&format!("{}/", keeper.url()), false)))).unwrap();
    let call = |method: &str, token: &str, asked: Value| {
        let path = format!("POST /twirp/github.actions.results.api.v1.ArtifactService/{method}");
        let headers = format!("authorization: Bearer {token}\r\ncontent-type: application/json\r\n");
        let (status, answer) = ask(between.url(), &path, &headers, asked.to_string().as_bytes());
        (status, serde_json::from_str::<Value>(&answer).unwrap_or_default())
    };
    assert_eq!(call("CreateArtifact", "one", json!({"name": "a"})).0, 401, "the keeper judges who may ask");
    assert_eq!(call("../../other", "one", json!({})).0, 401, "nothing else is handed on");
    keeper.admit("one", grant("dev/app", "refs/heads/main"));
    let (status, made) = call("CreateArtifact", "one", json!({"name": "a", "version": 4}));
    let address = made["signedUploadUrl"].as_str().unwrap();
    assert!(status == 200 && address.starts_with(keeper.url()), "archives go there directly: {made}");
    assert_eq!(ask(keeper.url(), &format!("PUT {}", &address[keeper.url().len()..]), "", b"abc").0, 201);
    assert_eq!(call("FinalizeArtifact", "one", json!({"name": "a", "size": "3"})).1["ok"], true);
    assert_eq!(call("CreateArtifact", "one", json!({"name": "a"})).0, 409, "and so does what goes wrong");
    let (_, list) = call("ListArtifacts", "one", json!({}));
    assert_eq!(list["artifacts"][0]["name"], "a");
}
