//! Static archives: what `sower archive` says about real ones, cut ones and hostile ones, and how it mends them.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proptest::prelude::*;
use sower::archive::{What, check, readers};
use tempfile::TempDir;

/// Runs a program that the test needs; its absence is a failure, not a pass.
fn tool(program: &str, arguments: &[&str], directory: &Path) -> Output {
    let output = Command::new(program).args(arguments).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; `make test-parts` installs it"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn sower(arguments: &[&str], directory: &Path, environment: &[(&str, &str)]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_sower"))
        .args(arguments)
        .current_dir(directory)
        .env_remove("GITHUB_STEP_SUMMARY")
        .env("SOWER_CACHE_DIR", directory.join("cache"))
        .env("SOWER_STATE_DIR", directory.join("state"))
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A member as Microsoft's tools write it: date -1, no owner.
fn member(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", -1, "", "", 0, content.len()).into_bytes();
    bytes.extend(content);
    bytes.resize(bytes.len() + bytes.len() % 2, b'\n');
    bytes
}

/// An import library of one member with one symbol; `astray` makes its second table point elsewhere.
fn import_library(astray: bool) -> Vec<u8> {
    let first_content = 1 + 2 * 4;
    let second_content = 4 + 4 + 4 + 2 + 6;
    let at = 8 + (60 + first_content + 1 + 4) + (60 + second_content);
    let at = u32::try_from(at).unwrap();
    let mut first = [1u32.to_be_bytes(), at.to_be_bytes()].concat();
    first.extend(b"alpha");
    first.push(0);
    let mut second =
        [1u32.to_le_bytes(), (if astray { 12 } else { at }).to_le_bytes(), 1u32.to_le_bytes()].concat();
    second.extend(1u16.to_le_bytes());
    second.extend(b"alpha\0");
    [b"!<arch>\n".to_vec(), member("/", &first), member("/", &second), member("x.dll/", b"abcd")].concat()
}

/// Digits become N: what a compiler writes has another size tomorrow.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if out.ends_with('N') => {}
            '0'..='9' => out.push('N'),
            c => out.push(c),
        }
    }
    out.replace("N,N,N", "N").replace("N,N", "N")
}

/// Hashes become HASH, before digits become N.
fn without_hashes(text: &str) -> String {
    let is_hash = |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words: Vec<&str> = text.split('`').map(|word| if is_hash(word) { "HASH" } else { word }).collect();
    words.join("`")
}

/// Three members: two objects, one of them with a long name, and a text of odd size that has no symbol.
fn sources(directory: &Path) {
    fs::write(directory.join("a.c"), "int first(void){return 1;}\n").unwrap();
    fs::write(directory.join("a_member_with_a_long_name.c"), "int second(void){return 2;}\n").unwrap();
    fs::write(directory.join("odd.txt"), "odd").unwrap();
    tool("gcc", &["-c", "a.c", "a_member_with_a_long_name.c"], directory);
}

const MEMBERS: [&str; 3] = ["a.o", "a_member_with_a_long_name.o", "odd.txt"];

fn gnu(directory: &Path) -> PathBuf {
    sources(directory);
    tool("ar", &["rcsD", "libx.a", MEMBERS[0], MEMBERS[1], MEMBERS[2]], directory);
    directory.join("libx.a")
}

fn truncate(path: &Path, size: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(size).unwrap();
}

/// Cuts a copy at every byte and gives the cuts that are not found.
fn cuts_not_found(archive: &Path, directory: &Path) -> Vec<u64> {
    let whole = fs::read(archive).unwrap();
    let cut = directory.join("cut.a");
    (0..whole.len())
        .filter(|&size| {
            fs::write(&cut, &whole[..size]).unwrap();
            let report = check(&cut).unwrap();
            assert!(
                report.sound || !readers::verdicts(&report).is_empty(),
                "cut at {size}: nobody fails of it"
            );
            report.sound
        })
        .map(|size| size as u64)
        .collect()
}

#[test]
fn every_cut_of_a_gnu_archive_is_found_but_those_that_leave_a_valid_one() {
    let directory = TempDir::new().unwrap();
    let archive = gnu(directory.path());
    let whole = check(&archive).unwrap();
    assert!(whole.sound);
    assert_eq!((whole.members, whole.symbols, whole.whole_until), (3, 2, whole.size));
    // At 8 an empty archive is left; in front of odd.txt one that lacks a member without symbols. In both
    // cases nothing in the file says that there was more.
    let before_odd = whole.size - 64;
    assert_eq!(cuts_not_found(&archive, directory.path()), [8, before_odd]);
}

#[test]
fn every_cut_of_a_bsd_archive_is_found_but_those_that_leave_a_valid_one() {
    let directory = TempDir::new().unwrap();
    sources(directory.path());
    for format in ["bsd", "darwin"] {
        let name = format!("lib{format}.a");
        tool("llvm-ar", &[&format!("--format={format}"), "rcsD", &name, "a.o", MEMBERS[1]], directory.path());
        let archive = directory.path().join(&name);
        let whole = check(&archive).unwrap();
        assert!(whole.sound, "{whole:?}");
        assert_eq!((whole.members, whole.kind), (2, sower::archive::check::Kind::Bsd));
        assert_eq!(cuts_not_found(&archive, directory.path()), [8], "{format}");
    }
}

#[test]
fn every_cut_of_an_archive_with_a_wide_symbol_table_is_found() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    sources(path);
    for format in ["gnu", "darwin"] {
        let name = format!("lib{format}64.a");
        let output = Command::new("llvm-ar")
            .args([&format!("--format={format}"), "rcsD", &name, "a.o", MEMBERS[1]])
            .current_dir(path)
            .env("SYM64_THRESHOLD", "1")
            .output()
            .unwrap();
        assert!(output.status.success());
        let archive = path.join(&name);
        let whole = check(&archive).unwrap();
        assert!(whole.sound && whole.symbols == 2, "{whole:?}");
        let bytes = fs::read(&archive).unwrap();
        assert_eq!(cuts_not_found(&archive, path), [8], "{format}");
        // GHC takes `/SYM64/` for a long name, and says no position behind it.
        for (cut, position) in [(80, Some(68)), (200, None), (whole.size - 10, None)] {
            truncate(&archive, cut);
            let report = check(&archive).unwrap();
            if format == "gnu" {
                assert_eq!(readers::ghc_position(&report), position, "cut at {cut}");
                let ghc = readers::verdicts(&report).remove(0);
                let refuses = ghc.how.contains("Invalid extended filename reference");
                assert!(ghc.fails && refuses == position.is_none(), "{ghc:?}");
            } else {
                assert!(readers::ghc_position(&report).is_some(), "cut at {cut}");
            }
            fs::write(&archive, &bytes).unwrap();
        }
    }
}

/// Positions of all headers by the size fields alone; `thin`: of members nothing follows.
fn boundaries(bytes: &[u8]) -> Vec<u64> {
    let thin = bytes.starts_with(b"!<thin>");
    let (mut at, mut found) = (8, Vec::new());
    while at < bytes.len() {
        found.push(at as u64);
        let size: usize = std::str::from_utf8(&bytes[at + 48..at + 58]).unwrap().trim().parse().unwrap();
        let inside = if thin && !matches!(&bytes[at..at + 2], b"//" | b"/ ") { 0 } else { size };
        at += 60 + inside + inside % 2;
    }
    found
}

/// One archive of every flavour that the tools here make, of some hundred kilobytes where there are bodies.
fn flavours(path: &Path) -> Vec<(String, PathBuf)> {
    let mut names = Vec::new();
    for index in 0..24 {
        let name = format!("object_number_{index}");
        let text = format!("char {name}[{}]={{1}};int f{index}(void){{return 1;}}", 9000 + index * 333);
        fs::write(path.join("x.c"), text).unwrap();
        tool("gcc", &["-c", "x.c", "-o", &format!("{name}.o")], path);
        names.push(format!("{name}.o"));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut made = Vec::new();
    let mut make = |flavour: &str, program: &str, wide: bool, first: &[&str]| {
        let name = format!("{flavour}.a");
        let output = Command::new(program)
            .args([first, &[&name], &names].concat())
            .current_dir(path)
            .env("SYM64_THRESHOLD", if wide { "1" } else { "4294967296" })
            .output()
            .unwrap();
        assert!(output.status.success(), "{flavour}: {}", String::from_utf8_lossy(&output.stderr));
        made.push((flavour.to_owned(), path.join(name)));
    };
    make("gnu", "ar", false, &["rcsD"]);
    make("gnu-without-table", "ar", false, &["rcSD"]);
    make("gnu-thin", "ar", false, &["rcsTD"]);
    make("gnu-64", "llvm-ar", true, &["--format=gnu", "rcsD"]);
    make("bsd", "llvm-ar", false, &["--format=bsd", "rcsD"]);
    make("darwin", "llvm-ar", false, &["--format=darwin", "rcsD"]);
    make("darwin-64", "llvm-ar", true, &["--format=darwin", "rcsD"]);
    fs::write(path.join("x.def"), "LIBRARY x.dll\nEXPORTS\n alpha\n beta\n").unwrap();
    tool("llvm-dlltool", &["-m", "i386:x86-64", "-d", "x.def", "-l", "import.lib"], path);
    made.push(("coff".to_owned(), path.join("import.lib")));
    fs::write(path.join("r.rs"), "pub fn a() -> usize { 7 }\n").unwrap();
    tool("rustc", &["--crate-type", "rlib", "--edition", "2024", "-o", "libr.rlib", "r.rs"], path);
    made.push(("rlib".to_owned(), path.join("libr.rlib")));
    made
}

/// Random cuts and those in the first and the last 64 KiB: some of them here, all with SOWER_CUTS=all (`make bench-archives`).
#[test]
fn cuts_of_every_flavour_are_found_but_those_that_leave_a_valid_archive() {
    let directory = TempDir::new().unwrap();
    let all = std::env::var_os("SOWER_CUTS").is_some();
    let (stride, random) = if all { (1, 2000) } else { (211, 40) };
    for (flavour, archive) in flavours(directory.path()) {
        let whole = fs::read(&archive).unwrap();
        assert!(check(&archive).unwrap().sound, "{flavour}");
        let size = whole.len() as u64;
        let headers = boundaries(&whole);
        let mut cuts: Vec<u64> =
            (0..size).filter(|cut| (*cut < 65536 || *cut + 65536 >= size) && cut % stride == 0).collect();
        // Numbers that look random and are the same every time.
        let mut state = 0x5eed_u64;
        cuts.extend((0..random).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 20) % size
        }));
        cuts.extend(&headers);
        cuts.extend(headers.iter().map(|header| header - 1));
        cuts.sort_unstable();
        cuts.dedup();
        let cut = directory.path().join("cut.a");
        fs::write(&cut, &whole).unwrap();
        let mut not_found = Vec::new();
        for &at in cuts.iter().rev() {
            truncate(&cut, at);
            let report = check(&cut).unwrap();
            if report.sound {
                not_found.push(at);
            } else {
                assert!(!readers::verdicts(&report).is_empty(), "{flavour} cut at {at}: nobody fails of it");
            }
        }
        // Where a header begins the rest is an archive, and only a symbol table can know better.
        assert!(not_found.iter().all(|at| headers.contains(at)), "{flavour}: {not_found:?}");
        let with_table = !matches!(flavour.as_str(), "gnu-without-table" | "coff" | "rlib");
        assert!(!with_table || not_found == [8], "{flavour}: {not_found:?}");
        println!("{flavour}: {} cuts of {size} bytes, not found: {not_found:?}", cuts.len());
    }
}

/// A GNU archive with three members, its bytes, and where the headers of table, names and members are.
fn with_headers(path: &Path) -> (PathBuf, Vec<u8>, Vec<usize>) {
    let archive = gnu(path);
    let bytes = fs::read(&archive).unwrap();
    let (mut at, mut headers) = (8, Vec::new());
    while at < bytes.len() {
        headers.push(at);
        let size: usize = std::str::from_utf8(&bytes[at + 48..at + 58]).unwrap().trim().parse().unwrap();
        at += 60 + size + size % 2;
    }
    assert_eq!(headers.len(), 5);
    (archive, bytes, headers)
}

#[test]
fn every_field_of_a_member_header_is_looked_at() {
    let directory = TempDir::new().unwrap();
    let (archive, whole, headers) = with_headers(directory.path());
    let member = headers[3];
    for (from, length, text, what) in [
        (16, 12, "abc", "odd-field"),
        (16, 12, "", "odd-field"),
        (28, 6, " 12", "odd-field"),
        (34, 6, "1 2", "odd-field"),
        (40, 8, "100689", "odd-field"),
        (48, 10, " 1440", "header-size"),
        (48, 10, "-5", "header-size"),
        (48, 10, "", "header-size"),
        (48, 10, "9999999999", "content-cut"),
        (58, 2, "xx", "header-end"),
        (0, 16, "/abc", "bad-name"),
        (0, 16, "#1/abc", "bad-name"),
        (0, 16, "/99999", "long-name"),
        (0, 16, "/3", "long-name-middle"),
        (0, 16, "#1/99999", "bsd-name"),
        (0, 16, "x.o", "name-unended"),
        (0, 16, "", "name-unended"),
    ] {
        let mut bytes = whole.clone();
        let field = format!("{text:<length$}");
        bytes[member + from..member + from + length].copy_from_slice(field.as_bytes());
        fs::write(&archive, &bytes).unwrap();
        let report = check(&archive).unwrap();
        assert!(!report.sound, "{text:?}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["faults"][0]["what"], what, "{text:?}");
        assert!(!readers::verdicts(&report).is_empty(), "{text:?}");
        // A whole copy mends each of them: everything but the damage agrees.
        let donor = directory.path().join("donor.a");
        fs::write(&donor, &whole).unwrap();
        let ran = sower(&["archive", "patch", "libx.a", "--from", "donor.a"], directory.path(), &[]);
        assert_eq!(ran.code, 0, "{text:?}: {}", ran.stderr);
        assert_eq!(fs::read(&archive).unwrap(), whole, "{text:?}");
    }
}

#[test]
fn a_symbol_table_that_tells_lies_is_found_and_made_anew() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (archive, whole, headers) = with_headers(path);
    let word = |number: usize| u32::try_from(number).unwrap().to_be_bytes();
    // 2 symbols: too many, more than fit, too few, none; pointing into a member, at the table, at nothing.
    for (at, bytes) in [
        (68, word(3)),
        (68, [0xff; 4]),
        (68, word(1)),
        (68, word(0)),
        (72, word(headers[2] + 2)),
        (72, word(8)),
        (72, word(0)),
    ] {
        let mut lies = whole.clone();
        lies[at..at + 4].copy_from_slice(&bytes);
        fs::write(&archive, &lies).unwrap();
        let ran = sower(&["archive", "check", "--json", "libx.a"], path, &[]);
        assert_eq!(ran.code, 1, "{bytes:?}");
        let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        // The command is for a shell.
        let programs = Path::new(env!("CARGO_BIN_EXE_sower")).parent().unwrap();
        let search = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
        let command = report["mend"].as_str().unwrap();
        let done = Command::new("sh")
            .args(["-c", command])
            .current_dir(path)
            .env("PATH", search)
            .env("SOWER_STATE_DIR", path.join("state"))
            .env_remove("GITHUB_STEP_SUMMARY")
            .output()
            .unwrap();
        assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
        let mended = check(&archive).unwrap();
        assert!(mended.sound && mended.symbols == 2 && mended.members == 3, "{mended:?}");
    }
}

#[test]
fn what_never_reached_the_disk_is_found() {
    let directory = TempDir::new().unwrap();
    let (archive, whole, headers) = with_headers(directory.path());
    let (second, last) = (headers[3], headers[4]);
    // Zeros: from a header on; a whole body; the end of a body, where the section headers are.
    for (from, until, what) in [
        (last, whole.len(), "header-end"),
        (second + 60, last, "object-blank"),
        (last - 200, last, "object-table"),
    ] {
        let mut bytes = whole.clone();
        bytes[from..until].fill(0);
        fs::write(&archive, &bytes).unwrap();
        let report = serde_json::to_value(check(&archive).unwrap()).unwrap();
        assert_eq!(report["faults"][0]["what"], what);
    }
    // A padding byte is nothing that a reader minds.
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() = b'x';
    fs::write(&archive, &bytes).unwrap();
    let report = check(&archive).unwrap();
    assert!(report.sound && matches!(report.faults[0].what, What::OddPadding { .. }), "{report:?}");
    // One that is missing is made good without a copy.
    fs::write(&archive, &whole[..whole.len() - 1]).unwrap();
    let ran = sower(&["archive", "check", "libx.a"], directory.path(), &[]);
    assert!(ran.code == 1 && ran.stdout.contains("sower archive patch libx.a --salvage\n"), "{}", ran.stdout);
    let ran = sower(&["archive", "patch", "libx.a", "--salvage"], directory.path(), &[]);
    assert!(ran.code == 0 && !ran.stdout.contains("LOST"), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(fs::read(&archive).unwrap(), whole);
}

#[test]
fn a_cut_symbol_table_still_tells_what_is_lost() {
    let directory = TempDir::new().unwrap();
    let (archive, whole, headers) = with_headers(directory.path());
    // Inside the second offset; in the names of the table.
    for size in [76, 82] {
        fs::write(&archive, &whole[..size]).unwrap();
        let report = check(&archive).unwrap();
        let lost = report.lost.unwrap();
        assert_eq!((lost.symbols, report.symbols), (2, 2), "{report:?}");
        assert!(lost.members >= 1 && lost.size_at_least > headers[2] as u64, "{report:?}");
    }
}

#[test]
fn names_that_no_terminal_should_see_are_told_all_the_same() {
    use std::os::unix::ffi::OsStrExt;
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let archive = gnu(path);
    truncate(&archive, 1500);
    for name in [&b"-x.a"[..], b"a b.a", b"\xff\n.a"] {
        let odd = path.join(std::ffi::OsStr::from_bytes(name));
        fs::copy(&archive, &odd).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_sower"))
            .args(["archive", "check", "--json"])
            .arg(&odd)
            .env("SOWER_CACHE_DIR", path)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        // What the shell makes of the command's third word is the path.
        let words = report["mend"].as_str().unwrap().replace("sower archive patch", "printf %s");
        let words = words.split(" --from").next().unwrap().to_owned();
        let said = Command::new("sh").args(["-c", &words]).output().unwrap();
        assert_eq!(said.stdout, odd.as_os_str().as_bytes(), "{words}");
        fs::remove_file(&odd).unwrap();
    }
    // What cannot be asked is told in JSON as well.
    let ran = sower(&["archive", "check", "--json", "missing.a"], path, &[]);
    let told: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(ran.code == 2 && told["error"].as_str().unwrap().contains("No such file"), "{told}");
}

#[test]
fn import_libraries_and_thin_archives_are_read() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    sources(path);
    let import = path.join("import.lib");
    fs::write(&import, import_library(false)).unwrap();
    let report = check(&import).unwrap();
    assert!(report.sound, "{report:?}");
    assert_eq!((report.kind, report.members, report.symbols), (sower::archive::check::Kind::Coff, 1, 1));
    fs::write(&import, import_library(true)).unwrap();
    let report = check(&import).unwrap();
    assert!(matches!(report.faults[0].what, What::SymbolsAstray { count: 1, points_at: 12 }), "{report:?}");

    tool("ar", &["rcsTD", "libthin.a", "a.o", MEMBERS[1]], path);
    let thin = check(&path.join("libthin.a")).unwrap();
    assert!(thin.sound && thin.thin, "{thin:?}");
    // Cut, it is mended from a copy elsewhere: the members are those beside it.
    fs::create_dir(path.join("donors")).unwrap();
    fs::copy(path.join("libthin.a"), path.join("donors/libthin.a")).unwrap();
    truncate(&path.join("libthin.a"), thin.size - 30);
    let ran = sower(&["archive", "patch", "libthin.a", "--from", "donors/libthin.a"], path, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(check(&path.join("libthin.a")).unwrap().size, thin.size);
    truncate(&path.join("a.o"), 100);
    fs::remove_file(path.join(MEMBERS[1])).unwrap();
    let broken = check(&path.join("libthin.a")).unwrap();
    assert!(matches!(broken.faults[0].what, What::ThinSize { found: 100, .. }), "{broken:?}");
    assert!(matches!(broken.faults[1].what, What::ThinMissing { .. }), "{broken:?}");
    // What stands for a member is looked at, whatever it is, and never opened.
    fs::remove_file(path.join("a.o")).unwrap();
    tool("mkfifo", &["a.o"], path);
    fs::create_dir(path.join(MEMBERS[1])).unwrap();
    let broken = check(&path.join("libthin.a")).unwrap();
    assert!(broken.faults.iter().all(|fault| matches!(fault.what, What::ThinMissing { .. })), "{broken:?}");
    // A member of a member: the archive that it is in must reach so far.
    fs::remove_file(path.join("a.o")).unwrap();
    fs::remove_dir(path.join(MEMBERS[1])).unwrap();
    let inner = gnu(path);
    tool("ar", &["rcsTD", "libnested.a", "libx.a"], path);
    assert!(check(&path.join("libnested.a")).unwrap().sound);
    truncate(&inner, 1500);
    let broken = check(&path.join("libnested.a")).unwrap();
    assert!(matches!(broken.faults[0].what, What::ThinSize { found: 1500, .. }), "{broken:?}");
}

#[test]
fn a_report_says_what_is_wrong_who_fails_and_what_mends() {
    let directory = TempDir::new().unwrap();
    let archive = gnu(directory.path());
    truncate(&archive, 1500);
    let ran = sower(&["archive", "check", "libx.a"], directory.path(), &[]);
    assert_eq!(ran.code, 1);
    insta::assert_snapshot!(without_numbers(&ran.stdout));
    let json = sower(&["archive", "check", "--json", "libx.a"], directory.path(), &[]);
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(report["sound"], false);
    assert_eq!(report["faults"][0]["what"], "content-cut");
    assert_eq!(report["faults"][0]["member"]["name"], MEMBERS[1]);
    assert_eq!(report["ghc_position"], report["faults"][0]["position"]);
}

#[test]
fn ghc_gives_up_at_the_position_that_is_foretold() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let whole = fs::read(gnu(path)).unwrap();
    fs::create_dir(path.join("lib")).unwrap();
    let archive = path.join("lib/libHScutpkg-1.0.a");
    fs::write(path.join("Main.hs"), "main = putStrLn \"hi\"\n").unwrap();
    let package = format!(
        "name: cutpkg\nversion: 1.0\nid: cutpkg-1.0\nkey: cutpkg-1.0\nexposed: True\nlibrary-dirs: {}\nhs-libraries: HScutpkg-1.0\n",
        path.join("lib").display()
    );
    fs::write(path.join("cutpkg.conf"), package).unwrap();
    tool("ghc-pkg", &["init", "db"], path);
    fs::write(&archive, &whole).unwrap();
    tool("ghc-pkg", &["--package-db", "db", "register", "--force", "cutpkg.conf"], path);
    tool("ghc", &["-c", "Main.hs"], path);
    let link = ["-staticlib", "-package-db", "db", "-package", "cutpkg", "Main.o", "-o", "out.a"];
    tool("ghc", &link, path);
    // In the magic; in the name, a field and the end of a header; in a table, a member; before the last padding.
    let end = whole.len();
    for size in [4, 20, 45, 67, 120, 300, 1500, end - 50, end - 2, end - 1] {
        fs::write(&archive, &whole[..size]).unwrap();
        let position = readers::ghc_position(&check(&archive).unwrap()).unwrap();
        let output = Command::new("ghc").args(link).current_dir(path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "cut at {size}");
        let expected = format!("Data.Binary.Get.runGet at position {position}: not enough bytes");
        assert!(said.contains(&expected), "cut at {size}: expected {expected:?} in {said}");
    }
}

#[test]
fn archives_of_this_machine_raise_no_alarm() {
    let sysroot = tool("rustc", &["--print", "sysroot"], Path::new("/"));
    let ghc = tool("ghc", &["--print-libdir"], Path::new("/"));
    let line = |output: Output| String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let directories =
        ["/usr/lib/gcc".to_owned(), "/usr/lib/x86_64-linux-gnu".to_owned(), line(sysroot), line(ghc)];
    let mut count = 0;
    for directory in &directories {
        for archive in sower::archive::find::archives_below(Path::new(directory)).archives {
            let report = check(&archive).unwrap();
            assert!(report.sound, "{report:?}");
            count += 1;
        }
    }
    // Rust's own archives go by another name.
    let deps = Path::new(env!("CARGO_BIN_EXE_sower")).with_file_name("deps");
    for entry in fs::read_dir(deps).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "rlib") {
            match check(&entry.path()) {
                Ok(report) => assert!(report.sound, "{report:?}"),
                // A build that runs beside this test may be writing it.
                Err(error) => eprintln!("{error}"),
            }
            count += 1;
        }
    }
    assert!(count > 50, "only {count} archives were found");
}

#[test]
fn a_member_that_was_cut_before_it_was_archived_is_found() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    sources(path);
    truncate(&path.join("a.o"), 900);
    // `ar` takes it without a word, and so does every look at the structure of the archive alone.
    tool("ar", &["rcSD", "libx.a", "a.o", MEMBERS[1]], path);
    let ran = sower(&["archive", "check", "libx.a"], path, &[]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout.contains("was cut before it was archived: its ELF header names section headers"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("and it has 900 bytes"), "{}", ran.stdout);
}

#[test]
fn what_cannot_be_asked_is_a_wrong_question() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    tool("mkfifo", &["pipe.a"], path);
    fs::create_dir(path.join("empty")).unwrap();
    for (archive, words) in [
        ("missing.a", "No such file"),
        ("pipe.a", "not a file"),
        ("/dev/zero", "not a file"),
        ("empty", "no *.a"),
    ] {
        let ran = sower(&["archive", "check", archive], path, &[]);
        assert_eq!(ran.code, 2, "{archive}");
        assert!(ran.stderr.contains(words), "{archive}: {}", ran.stderr);
    }
    let ran = sower(&["archive", "patch", "missing.a"], path, &[]);
    assert_eq!(ran.code, 2);
}

#[test]
fn a_directory_is_searched_and_summed_up() {
    let directory = TempDir::new().unwrap();
    let archive = gnu(directory.path());
    let below = directory.path().join("dist/lib");
    fs::create_dir_all(&below).unwrap();
    fs::copy(&archive, below.join("whole.a")).unwrap();
    fs::copy(&archive, below.join("cut.a")).unwrap();
    truncate(&below.join("cut.a"), 2000);
    std::os::unix::fs::symlink("..", below.join("circle")).unwrap();
    let ran = sower(&["archive", "check", "dist"], directory.path(), &[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("sound      dist/lib/whole.a: GNU, 3 members, 2 symbols"), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("1 sound, 1 not sound\n"), "{}", ran.stdout);
    let quiet = sower(&["archive", "check", "--quiet", "dist/lib/whole.a"], directory.path(), &[]);
    assert_eq!((quiet.code, quiet.stdout.as_str()), (0, ""));
}

/// A whole archive in `donors/`, and a cut one of the same name beside it with the marks of the Nix store.
fn cut_and_donor(path: &Path) -> (PathBuf, PathBuf) {
    let archive = gnu(path);
    fs::create_dir(path.join("donors")).unwrap();
    let donor = path.join("donors/libx.a");
    fs::copy(&archive, &donor).unwrap();
    truncate(&archive, 2000);
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o444)).unwrap();
    let second = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
    fs::File::open(&archive).unwrap().set_modified(second).unwrap();
    (archive, donor)
}

#[test]
fn a_mend_keeps_the_marks_and_spares_other_names_of_the_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (archive, donor) = cut_and_donor(path);
    fs::hard_link(&archive, path.join("twin.a")).unwrap();
    let summary = path.join("summary.md");
    let dry = sower(&["archive", "patch", "libx.a", "--from", "donors", "--dry-run"], path, &[]);
    assert_eq!(dry.code, 0);
    assert!(dry.stdout.contains("nothing was written"), "{}", dry.stdout);
    assert_eq!(fs::metadata(&archive).unwrap().len(), 2000);

    let ran = sower(
        &["archive", "patch", "libx.a", "--from", "donors"],
        path,
        &[("GITHUB_STEP_SUMMARY", summary.to_str().unwrap())],
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(fs::read(&archive).unwrap(), fs::read(&donor).unwrap());
    let meta = fs::metadata(&archive).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.nlink()), (0o444, 1, 1));
    assert_eq!(fs::metadata(path.join("twin.a")).unwrap().len(), 2000);
    assert!(ran.stdout.contains("1 other name(s)"), "{}", ran.stdout);
    insta::assert_snapshot!(without_numbers(&without_hashes(&fs::read_to_string(&summary).unwrap())));
    let leftovers: Vec<_> = fs::read_dir(path)
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().contains("mend"))
        .collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
    // Mended is mended: asked again, there is nothing to do.
    let again = sower(&["archive", "patch", "libx.a", "--from", "donors"], path, &[]);
    assert!(again.code == 0 && again.stdout.contains("nothing to mend"), "{}", again.stdout);
    // Both ways to read it work: by symbol, and member by member.
    tool("ranlib", &["libx.a"], path);
    tool("llvm-ar", &["t", "libx.a"], path);
}

#[test]
fn a_donor_that_is_another_archive_or_cut_itself_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (archive, donor) = cut_and_donor(path);
    let whole = fs::read(&donor).unwrap();
    let before = fs::read(&archive).unwrap();
    let mut other = whole.clone();
    other[1200] ^= 1;
    fs::write(path.join("other.a"), &other).unwrap();
    fs::write(path.join("short.a"), &whole[..2100]).unwrap();
    for (from, words) in [
        ("other.a", "the first difference is at position 1,200"),
        ("short.a", "not sound itself"),
        ("libx.a", "not sound itself"),
        ("nix", "not in the Nix store"),
    ] {
        let ran = sower(&["archive", "patch", "libx.a", "--from", from], path, &[]);
        assert_eq!(ran.code, 1, "{from}");
        assert!(ran.stderr.contains(words), "{from}: {}", ran.stderr);
        assert_eq!(fs::read(&archive).unwrap(), before, "{from}");
    }
    let ran =
        sower(&["archive", "patch", "libx.a", "--from", "other.a", "--from", "donors/libx.a"], path, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn two_mends_at_once_do_it_once() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let (archive, donor) = cut_and_donor(path);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert_eq!(sower(&["archive", "patch", "libx.a", "--from", "donors"], path, &[]).code, 0)
            });
        }
    });
    assert_eq!(fs::read(&archive).unwrap(), fs::read(&donor).unwrap());
}

#[test]
fn check_with_repair_mends_what_it_finds() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    cut_and_donor(path);
    let ran =
        sower(&["archive", "check", "--repair", "--from", "donors", "--", "libx.a", "donors"], path, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.ends_with("1 sound, 1 mended, 0 not sound\n"), "{}", ran.stdout);
}

#[test]
fn nix_brings_a_store_path_back() {
    let directory = TempDir::new().unwrap();
    let path = directory.path();
    let archive = gnu(path);
    let at = |name: &str| path.join(name).display().to_string();
    let cache = format!("file://{}", at("cache"));
    let config = format!(
        "experimental-features = nix-command flakes\nbuild-users-group =\nsandbox = false\nrequire-sigs = false\nsubstituters = {cache}\ntrusted-substituters = {cache}\n"
    );
    let (store, state, log, etc) = (at("store"), at("var"), at("log"), at("etc"));
    let environment = [
        ("NIX_CONFIG", config.as_str()),
        ("NIX_STORE_DIR", &store),
        ("NIX_STATE_DIR", &state),
        ("NIX_LOG_DIR", &log),
        ("NIX_CONF_DIR", &etc),
        ("NIX_REMOTE", ""),
        ("HOME", path.to_str().unwrap()),
    ];
    let nix = |arguments: &[&str]| {
        let output = Command::new("nix").args(arguments).current_dir(path).envs(environment).output();
        let output = output.unwrap_or_else(|error| panic!("nix: {error}; `make test-parts` installs it"));
        assert!(output.status.success(), "nix {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    fs::create_dir_all(path.join("tree/lib")).unwrap();
    fs::copy(&archive, path.join("tree/lib/libx.a")).unwrap();
    let store_path = nix(&["store", "add-path", "tree"]);
    nix(&["copy", "--to", &cache, &store_path]);
    let stored = PathBuf::from(&store_path).join("lib/libx.a");
    fs::set_permissions(&stored, fs::Permissions::from_mode(0o644)).unwrap();
    truncate(&stored, 2000);
    let stored = stored.to_str().unwrap();
    let ran = sower(&["archive", "check", stored], path, &environment);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains(&format!("sower archive patch {stored}\n")), "{}", ran.stdout);
    let ran = sower(&["archive", "patch", stored], path, &environment);
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("nix store repair"), "{}", ran.stdout);
    assert_eq!(fs::read(stored).unwrap(), fs::read(&archive).unwrap());
}

/// Whatever is asked of a hostile file gets an answer.
fn answers(path: &Path) {
    let Ok(report) = check(path) else { return };
    let _ = (sower::archive::words::text(&report), readers::verdicts(&report));
    let file = fs::File::open(path).unwrap();
    let _ = sower::archive::salvage::plan(&file, &report);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn hostile_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..4096), magic in any::<bool>()) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("hostile.a");
        let bytes = if magic { [b"!<arch>\n".as_slice(), &bytes].concat() } else { bytes };
        fs::write(&path, bytes).unwrap();
        answers(&path);
    }

    #[test]
    fn hostile_headers_get_an_answer(
        name in "(/|//|/SYM64/|#1/[0-9]{1,12}|/[0-9]{1,14}|__.SYMDEF|[ -~]{0,16})",
        size in "([0-9]{1,10}|-[0-9]{1,4}| *[0-9]{1,3})",
        thin in any::<bool>(),
        body in proptest::collection::vec(any::<u8>(), 0..512),
    ) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("hostile.a");
        let header = |name: &str, size: &str| format!("{name:<16.16}{:<12}{:<6}{:<6}{:<8}{size:<10.10}`\n", 0, 0, 0, 644).into_bytes();
        let mut bytes = if thin { b"!<thin>\n".to_vec() } else { b"!<arch>\n".to_vec() };
        bytes.extend(header(&name, &size));
        bytes.extend(&body);
        bytes.resize(bytes.len() + bytes.len() % 2, b'\n');
        bytes.extend(header("../../etc/shadow", "4"));
        fs::write(&path, bytes).unwrap();
        answers(&path);
    }
}
