//! Causes are told from what real programs really say: each is provoked here, and its words go through the table.
#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use sower::diagnose::{End, Evidence, find};
use sower::limits::meter::Deaths;

/// Runs a script; gives how it ended, what it said, and what is made of that.
fn told(at: &Path, script: &str) -> (End, String, String) {
    let output = Command::new("sh").args(["-c", script]).current_dir(at).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("sh: {error}"));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let end = End::Exit(output.status.code().unwrap_or(137));
    let deaths = Deaths::default();
    let found = find(&Evidence { end, rows: &said, deaths: &deaths, ceiling: None, own: &[] });
    (end, said, found.map(|found| found.to_string()).unwrap_or_default())
}

fn expect(at: &Path, script: &str, cause: &str) {
    let (end, said, found) = told(at, script);
    assert!(found.contains(cause), "{script}: {end:?}\n{said}\n-> {found}");
}

#[test]
fn readers_of_a_truncated_archive_are_understood() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    for name in ["one", "two"] {
        let values = "1, ".repeat(20_000);
        fs::write(at.join(format!("{name}.c")), format!("int {name}[] = {{ {values} 2 }};\n")).unwrap();
    }
    fs::write(at.join("main.c"), "extern int one[], two[]; int main(void) { return one[0] + two[0]; }\n")
        .unwrap();
    let (_, said, _) = told(
        at,
        "gcc -c one.c two.c main.c && ar rcs libx.a one.o two.o && head -c 100000 libx.a > libcut.a",
    );
    assert_eq!(said, "", "`make test-parts` installs gcc and binutils");
    expect(at, "gcc -fuse-ld=bfd main.o libcut.a -o main", "the linker (ld) found ");
    expect(at, "gcc -fuse-ld=gold main.o libcut.a -o main", "truncated");
    expect(at, "ar x libcut.a", "truncated");
    expect(at, "gcc -fuse-ld=lld main.o libcut.a -o main", "(lld) found ");
    expect(at, "head -c 100 libx.a > libshort.a; gcc -fuse-ld=lld main.o libshort.a -o main", "libshort.a");
    expect(at, "head -c 100 libx.a > libshort.a; gcc -fuse-ld=bfd main.o libshort.a -o main", "libshort.a");
}

/// Has GHC use packages of which one has its archive cut: `containers`, to 5 MB of 8.
#[test]
fn ghc_s_own_readers_of_a_truncated_archive_are_understood() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (_, said, _) = told(
        at,
        "set -e; mkdir cut packages; conf=$(ghc --print-libdir)/package.conf.d\n\
         cp \"$conf\"/*.conf packages\n\
         lib=$(ghc-pkg field containers library-dirs --simple-output); name=$(basename \"$lib\"/libHScontainers-*[0-9].a)\n\
         head -c 5000000 \"$lib/$name\" > cut/\"$name\"\n\
         sed -i \"s#^library-dirs:.*#library-dirs: $PWD/cut#\" packages/containers-*.conf\n\
         ghc-pkg --package-db packages recache",
    );
    assert_eq!(said, "");
    fs::write(at.join("Main.hs"), "import Data.Map\nmain = print (size (fromList [(1 :: Int, 2 :: Int)]))\n")
        .unwrap();
    let packages = "ghc -v0 -clear-package-db -package-db packages";
    expect(
        at,
        &format!("{packages} -staticlib Main.hs -o all.a"),
        "GHC's own reader of archives (-staticlib) met the end",
    );
    let script = format!("{packages} -fexternal-interpreter -static -e 'Data.Map.size Data.Map.empty'");
    expect(at, &script, "GHC's own linker (Template Haskell, GHCi) met the end of a static archive");
    expect(at, &script, "/cut/libHScontainers-");
}

#[test]
fn ghc_s_words_about_a_damaged_interface_are_understood() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (_, said, _) = told(
        at,
        "printf 'module Foo where\\ndata T = A | B deriving (Show, Eq)\\n' > Foo.hs; printf 'module Use where\\nimport Foo\\n' > Use.hs; ghc -v0 -c Foo.hs && cp Foo.hi whole",
    );
    assert_eq!(said, "");
    expect(at, "head -c 4 whole > Foo.hi; ghc -v0 -c Use.hs", "GHC cannot read the interface file ./Foo.hi");
}

#[test]
fn programs_that_are_refused_memory_or_room_are_understood() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    expect(at, "ulimit -v 200000; python3 -c 'a = bytes(400000000)'", "a Python program was refused memory");
    expect(
        at,
        "node --max-old-space-size=20 -e 'let a = []; for (;;) a.push(new Array(1000).fill(a.length))'",
        "a JavaScript program reached its heap limit",
    );
    expect(at, "dd if=/dev/zero of=/dev/full count=1", "no space is left on a disk");
    expect(
        at,
        "ulimit -n 20; python3 -c 'a = [open(\"/dev/null\") for i in range(50)]'",
        "its limit of open files",
    );
    expect(at, "GHCRTS=-M5x ghc --version", "GHC refuses a run-time option");
    expect(
        at,
        "ghc -e 'let xs = [1 .. 20000000 :: Int] in print (sum xs + length xs)' +RTS -M60m",
        "GHC reached its own heap ceiling",
    );
    expect(
        at,
        "ulimit -d 300000; ghc -e 'let xs = [1 .. 20000000 :: Int] in print (sum xs + length xs)'",
        "GHC's run-time system was refused",
    );
    fs::write(at.join("Main.hs"), "main = putStrLn \"x\"\n").unwrap();
    expect(at, "ghc -v0 Main.hs -o plain && GHCRTS=-M1g ./plain", "linked without -rtsopts");
    assert_eq!(told(at, "echo error: something else; exit 1").2, "");
}
