//! The SSH client against a real sshd on loopback.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use sower::ssh::{Connection, Error, Exit, FileKind, Options, Secret, Target};
use sower_test_support::{Sshd, free_address};

fn target(sshd: &Sshd) -> Target {
    format!("127.0.0.1:{}", sshd.port()).parse().unwrap()
}

/// Nothing of this machine: no agent, no configuration, no usual keys.
fn options(sshd: &Sshd) -> Options {
    let config = sshd.path("no_config");
    fs::write(&config, "").unwrap();
    Options {
        config: Some(config),
        known_hosts: vec![sshd.known_hosts()],
        identities: vec![sshd.key()],
        agent: None,
        ..Options::default()
    }
}

fn refused(sshd: &Sshd, options: &Options) -> Error {
    Connection::open(&target(sshd), options).err().unwrap()
}

fn whoami(connection: &Connection) -> String {
    let output = connection.output("echo in", &[], 100).unwrap();
    assert!(output.exit.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn programs_get_stdin_and_give_stdout_stderr_and_an_exit_code() {
    let sshd = Sshd::start().unwrap();
    let connection = Connection::open(&target(&sshd), &options(&sshd)).unwrap();
    let output = connection.output("cat; echo wrong >&2; exit 7", b"through stdin", 1000).unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"through stdin"[..], &b"wrong\n"[..])
    );
    assert_eq!(output.exit, Exit::Code(7));
    let killed = connection.output("kill -KILL $$", &[], 10).unwrap();
    assert_eq!(killed.exit, Exit::Signal("KILL".to_owned()));

    // More than any window holds, in both directions at once.
    let mut sent = std::io::repeat(b'x').take(20_000_000);
    let mut came = Vec::new();
    let exit = connection.run("tr x y", &mut sent, &mut came, &mut std::io::sink()).unwrap();
    assert!(exit.success());
    assert_eq!(came.len(), 20_000_000);
    assert!(came.iter().all(|byte| *byte == b'y'));

    // A program that does not want what it is sent.
    let mut endless = std::io::repeat(0);
    let exit = connection.run("exit 3", &mut endless, &mut Vec::new(), &mut std::io::sink()).unwrap();
    assert_eq!(exit, Exit::Code(3));
}

#[test]
fn what_cannot_be_read_here_ends_the_program_there() {
    struct Fails(u32);
    impl std::io::Read for Fails {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 > 3 { Err(std::io::Error::other("the disk is gone")) } else { Ok(buffer.len()) }
        }
    }
    let sshd = Sshd::start().unwrap();
    let connection = Connection::open(&target(&sshd), &options(&sshd)).unwrap();
    let error =
        connection.run("cat >/dev/null", &mut Fails(0), &mut Vec::new(), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("the disk is gone"), "{error}");
}

#[test]
fn an_unknown_host_key_is_refused_with_its_fingerprint() {
    let sshd = Sshd::start().unwrap();
    let mut options = options(&sshd);
    options.known_hosts = vec![sshd.path("nothing")];
    let error = refused(&sshd, &options);
    let fingerprint = sshd.fingerprint().unwrap();
    assert!(matches!(error, Error::UnknownHost { .. }), "{error}");
    assert!(error.to_string().contains(&fingerprint), "{error}");

    // Given by hand it will do.
    options.fingerprint = Some(fingerprint);
    assert_eq!(whoami(&Connection::open(&target(&sshd), &options).unwrap()), "in\n");
}

#[test]
fn a_changed_host_key_stops_with_both_fingerprints() {
    let mut sshd = Sshd::start().unwrap();
    let before = sshd.fingerprint().unwrap();
    sshd.kill();
    sshd.change_host_key().unwrap();
    sshd.go_on().unwrap();
    let error = refused(&sshd, &options(&sshd));
    let (after, text) = (sshd.fingerprint().unwrap(), error.to_string());
    assert!(matches!(error, Error::ChangedHost { .. }), "{text}");
    assert!(text.contains(&before) && text.contains(&after) && before != after, "{text}");
    assert!(text.contains("known_hosts:1"), "{text}");
}

#[test]
fn known_hosts_decides_which_kind_of_key_is_asked_for() {
    let mut sshd = Sshd::start().unwrap();
    sshd.kill();
    sshd.make_key("host_rsa", "rsa", "").unwrap();
    let config = fs::read_to_string(sshd.path("sshd_config")).unwrap();
    fs::write(sshd.path("sshd_config"), format!("{config}HostKey {}\n", sshd.path("host_rsa").display()))
        .unwrap();
    let public = fs::read_to_string(sshd.path("host_rsa.pub")).unwrap();
    // Hashed, as Debian's ssh writes it.
    fs::write(sshd.known_hosts(), format!("[127.0.0.1]:{} {public}", sshd.port())).unwrap();
    let hashed = Command::new("ssh-keygen").arg("-Hf").arg(sshd.known_hosts()).output().unwrap();
    assert!(hashed.status.success());
    assert!(fs::read_to_string(sshd.known_hosts()).unwrap().starts_with("|1|"));
    sshd.go_on().unwrap();
    assert_eq!(whoami(&Connection::open(&target(&sshd), &options(&sshd)).unwrap()), "in\n");
}

#[test]
fn keys_of_all_kinds_with_and_without_passphrase() {
    let sshd = Sshd::start().unwrap();
    for (kind, passphrase) in [("ed25519", "open sesame"), ("ecdsa", ""), ("rsa", ""), ("rsa", "open sesame")]
    {
        let name = format!("{kind}{}", passphrase.len());
        let path = sshd.make_key(&name, kind, passphrase).unwrap();
        sshd.authorize(&name).unwrap();
        let content = fs::read_to_string(&path).unwrap();
        let secret = |text: &str| Some(Secret::new(text.to_owned()));
        let with = |key, passphrase| Options { identities: Vec::new(), key, passphrase, ..options(&sshd) };
        // From a file, and from a secret with the line ends that a web form makes of it.
        let from_file =
            Options { identities: vec![path.clone()], passphrase: secret(passphrase), ..options(&sshd) };
        assert_eq!(whoami(&Connection::open(&target(&sshd), &from_file).unwrap()), "in\n", "{name}");
        let pasted = content.replace('\n', "\r\n");
        let from_secret = with(secret(pasted.trim()), secret(passphrase));
        assert_eq!(whoami(&Connection::open(&target(&sshd), &from_secret).unwrap()), "in\n", "{name}");
        if !passphrase.is_empty() {
            let error = refused(&sshd, &with(secret(&content), None));
            assert!(
                error.to_string().contains("encrypted: its passphrase goes into SOWER_SSH_PASSPHRASE"),
                "{error}"
            );
            let error = refused(&sshd, &with(secret(&content), secret("wrong")));
            assert!(error.to_string().contains("the passphrase may be wrong"), "{error}");
        }
    }
    let error = refused(&sshd, &Options { key: Some(Secret::new("hunter2".to_owned())), ..options(&sshd) });
    assert!(error.is_wrong_question() && !error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn a_key_that_is_not_let_in_is_named() {
    let sshd = Sshd::start().unwrap();
    let stranger = sshd.make_key("stranger", "ed25519", "").unwrap();
    let error = refused(&sshd, &Options { identities: vec![stranger.clone()], ..options(&sshd) });
    assert!(matches!(error, Error::Refused { .. }));
    assert!(error.to_string().contains(&format!("{} is not accepted", stranger.display())), "{error}");
}

#[test]
fn the_agent_signs() {
    let sshd = Sshd::start().unwrap();
    let socket = sshd.path("agent");
    let mut agent = Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("ssh-agent: {error}: `make test-parts` installs it"));
    while !socket.exists() {
        thread::sleep(Duration::from_millis(10));
    }
    let mut connected = Vec::new();
    for kind in ["ed25519", "rsa"] {
        let name = format!("agent_{kind}");
        let key = sshd.make_key(&name, kind, "").unwrap();
        sshd.authorize(&name).unwrap();
        let add = |arguments: &[&str]| {
            let add = Command::new("ssh-add")
                .args(arguments)
                .arg(&key)
                .env("SSH_AUTH_SOCK", &socket)
                .output()
                .unwrap();
            assert!(add.status.success());
        };
        add(&["-q"]);
        // Only the agent has it now.
        fs::remove_file(&key).unwrap();
        let with = Options { identities: Vec::new(), agent: Some(socket.clone()), ..options(&sshd) };
        connected.push(Connection::open(&target(&sshd), &with).map(|connection| whoami(&connection)));
        // Named by its file, of which the public half is enough.
        let with = Options { identities: vec![key.clone()], agent: Some(socket.clone()), ..options(&sshd) };
        connected.push(Connection::open(&target(&sshd), &with).map(|connection| whoami(&connection)));
        fs::write(&key, "").unwrap();
        let _ = Command::new("ssh-add").args(["-q", "-D"]).env("SSH_AUTH_SOCK", &socket).status();
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
    for connected in connected {
        assert_eq!(connected.unwrap(), "in\n");
    }
}

#[test]
fn aliases_of_the_configuration_are_followed_through_a_jump_host() {
    let (jump, node) = (Sshd::start().unwrap(), Sshd::start().unwrap());
    let config = jump.path("config");
    let known: PathBuf = jump.path("both");
    let both =
        [jump.known_hosts(), node.known_hosts()].map(|path| fs::read_to_string(path).unwrap()).concat();
    fs::write(&known, both).unwrap();
    let text = format!(
        "Host cluster\n  HostName 127.0.0.1\n  Port {}\n  IdentityFile {}\n  ProxyJump gate\n\
         Host gate\n  HostName 127.0.0.1\n  Port {}\n  IdentityFile {}\n\
         Host *\n  UserKnownHostsFile {}\n",
        node.port(),
        node.key().display(),
        jump.port(),
        jump.key().display(),
        known.display(),
    );
    fs::write(&config, text).unwrap();
    let options = Options { config: Some(config), agent: None, ..Options::default() };
    let connection = Connection::open(&"cluster".parse().unwrap(), &options).unwrap();
    let output = connection.output("echo $SSH_CONNECTION", &[], 200).unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.trim_end().ends_with(&format!("127.0.0.1 {}", node.port())), "{line}");
    drop(connection);

    // The jump host's key counts, too.
    fs::write(&known, fs::read_to_string(node.known_hosts()).unwrap()).unwrap();
    let error = Connection::open(&"cluster".parse().unwrap(), &options).err().unwrap();
    assert!(matches!(error, Error::UnknownHost { .. }), "{error}");
    assert!(error.to_string().contains(&jump.port().to_string()), "{error}");
}

#[test]
fn a_tunnel_carries_and_is_made_anew_when_the_connection_was_lost() {
    let mut sshd = Sshd::start().unwrap();
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = service.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in service.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut copy = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut copy);
            });
        }
    });
    let connection = Connection::open(&target(&sshd), &options(&sshd)).unwrap();
    let tunnel = connection.tunnel("127.0.0.1", port).unwrap();
    assert!(tunnel.address().ip().is_loopback());
    let echo = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(tunnel.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(&[7; 100_000])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut came = Vec::new();
        stream.read_to_end(&mut came)?;
        Ok(came)
    };
    assert_eq!(echo().unwrap().len(), 100_000);
    assert_eq!(tunnel.rebuilt(), 0);
    sshd.kill();
    sshd.go_on().unwrap();
    // The loss is noticed a moment later than it happens.
    let mut tries = 0;
    while echo().map_or(0, |came| came.len()) != 100_000 {
        tries += 1;
        assert!(tries < 200, "the tunnel stays dead: {:?}", tunnel.trouble());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(tunnel.rebuilt(), 1);

    let dead = connection.tunnel("127.0.0.1", 1);
    // The first connection is gone for good; what is asked of it says so.
    assert!(dead.is_ok() && connection.end().is_some());
    assert!(connection.output("true", &[], 1).is_err());
}

#[test]
fn nobody_behind_a_tunnel_is_said() {
    let sshd = Sshd::start().unwrap();
    let connection = Connection::open(&target(&sshd), &options(&sshd)).unwrap();
    let tunnel = connection.tunnel("127.0.0.1", 1).unwrap();
    let mut stream = TcpStream::connect(tunnel.address()).unwrap();
    let mut came = Vec::new();
    let _ = stream.read_to_end(&mut came);
    assert!(came.is_empty());
    let trouble = tunnel.trouble().unwrap();
    assert!(trouble.contains("a connection to 127.0.0.1:1: nobody listens there"), "{trouble}");
}

#[test]
fn files_are_read_in_ranges_and_written() {
    let sshd = Sshd::start().unwrap();
    let connection = Connection::open(&target(&sshd), &options(&sshd)).unwrap();
    let mut sftp = connection.sftp().unwrap();
    let content: Vec<u8> = (0..5_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = sshd.path("remote file").display().to_string();
    assert_eq!(sftp.write(&path, 0o640, &mut content.as_slice()).unwrap(), 5_000_003);
    assert_eq!(fs::read(&path).unwrap(), content);
    let status = sftp.status_of(&path).unwrap();
    assert_eq!((status.size, status.kind), (5_000_003, FileKind::File));

    for (offset, length) in [
        (0, None),
        (0, Some(0)),
        (1, Some(1)),
        (4_999_999, Some(100)),
        (123_456, Some(2_000_001)),
        (6_000_000, None),
    ] {
        let mut came = Vec::new();
        let count = sftp.read(&path, offset, length, &mut came).unwrap();
        let begin = (offset as usize).min(content.len());
        let end = length.map_or(content.len(), |length: u64| (begin + length as usize).min(content.len()));
        assert_eq!(count as usize, end - begin, "{offset} {length:?}");
        assert!(came == content[begin..end], "{offset} {length:?}");
    }

    let missing = sftp.read("/nothing/here", 0, None, &mut Vec::new()).unwrap_err();
    assert!(
        missing.is_missing() && missing.to_string().ends_with("/nothing/here: there is no such file"),
        "{missing}"
    );
    let directory = sshd.path("new").display().to_string();
    sftp.make_directory(&directory, 0o700).unwrap();
    assert_eq!(sftp.status_of(&directory).unwrap().kind, FileKind::Directory);
    assert!(sftp.make_directory(&directory, 0o700).is_err());
    sftp.remove_directory(&directory).unwrap();
    sftp.rename(&path, &format!("{path}.2")).unwrap();
    sftp.remove(&format!("{path}.2")).unwrap();
    assert!(sftp.absolute(".").unwrap().starts_with('/'));
}

#[test]
fn nobody_and_nonsense_on_the_port_are_said() {
    let sshd = Sshd::start().unwrap();
    let free = free_address().unwrap().port();
    let nobody = format!("127.0.0.1:{free}").parse().unwrap();
    let error = Connection::open(&nobody, &options(&sshd)).err().unwrap();
    assert!(error.to_string().contains("cannot be reached over SSH: Connection refused"), "{error}");

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("127.0.0.1:{}", silent.local_addr().unwrap().port()).parse().unwrap();
    let soon = Options { connect_timeout: Duration::from_millis(300), ..options(&sshd) };
    let error = Connection::open(&target, &soon).err().unwrap();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}
