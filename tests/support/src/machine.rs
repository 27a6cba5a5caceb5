//! A virtual machine that runs the daemon: QEMU with Debian's cloud kernel, an initial file system of busybox and the
//! program, and a disk with ext4. The stand-in for Gitea stays up outside.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Forge, Runner, Trouble};

/// The host as the machine sees it.
const GATEWAY: &str = "10.0.2.2";
/// What the kernel needs for the disk and the network, in this order.
const MODULES: [&str; 9] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
];

/// How every machine comes up; `MODULES` becomes the names of the modules.
const BOOT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/data LANG=C.UTF-8
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tmpfs tmp /tmp
for module in MODULES; do [ -e /modules/$module.ko ] && insmod /modules/$module.ko; done
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
route add default gw 10.0.2.2
mount -t ext4 /dev/vda /data || echo "NO DISK"
"#;

/// What a machine is made of.
#[derive(Debug, Clone, Copy)]
pub struct Build<'b> {
    /// The program.
    pub sower: &'b Path,
    /// The kernel.
    pub kernel: &'b Path,
    /// The kernel's modules.
    pub modules: &'b Path,
    /// What the first process does once the file systems and the network are there: a script that does not end.
    pub init: &'b str,
    /// The daemon's configuration, at `/etc/config.yaml`.
    pub config: &'b str,
    /// Further programs of this host, which go into `/bin` with what they are linked to.
    pub programs: &'b [&'b str],
    /// Memory in MiB.
    pub memory: u32,
}

/// A virtual machine. It is off once this is dropped.
#[derive(Debug)]
pub struct Machine {
    folder: tempfile::TempDir,
    kernel: PathBuf,
    memory: u32,
    child: Option<Child>,
    /// How often it was started.
    pub boots: u32,
}

impl Machine {
    /// Makes its files; `registration` goes onto its disk, which the machine has at `/data`.
    ///
    /// # Errors
    /// When a part is not there.
    pub fn new(build: &Build<'_>, registration: &str) -> Result<Self, Trouble> {
        let folder = tempfile::tempdir()?;
        fs::create_dir_all(folder.path().join("root/state"))?;
        fs::write(folder.path().join("root/state/.runner"), registration)?;
        let root = folder.path().join("root");
        Self::with_disk(build, folder, &root, 256 << 20)
    }

    /// Makes its files; what is in `root` goes onto its disk, which has this many bytes. The machine has it at `/data`.
    ///
    /// # Errors
    /// When a part is not there.
    pub fn of_root(build: &Build<'_>, root: &Path, bytes: u64) -> Result<Self, Trouble> {
        Self::with_disk(build, tempfile::tempdir()?, root, bytes)
    }

    fn with_disk(
        build: &Build<'_>,
        folder: tempfile::TempDir,
        root: &Path,
        bytes: u64,
    ) -> Result<Self, Trouble> {
        fs::write(folder.path().join("initrd"), initrd(build)?)?;
        let disk = folder.path().join("disk");
        File::create(&disk)?.set_len(bytes)?;
        let made = Command::new("mkfs.ext4")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args(["-q", "-d"])
            .arg(root)
            .arg(&disk)
            .status()?;
        if !made.success() {
            return Err("mkfs.ext4 failed".into());
        }
        Ok(Self { folder, kernel: build.kernel.to_owned(), memory: build.memory, child: None, boots: 0 })
    }

    /// Switches it on.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub fn boot(&mut self) -> Result<(), Trouble> {
        self.boots += 1;
        let place = |name: &str| self.folder.path().join(name).display().to_string();
        let serial = File::options().create(true).append(true).open(place("serial.log"))?;
        let child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", &self.memory.to_string(), "-smp", "1"])
            .args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"])
            .args(["-kernel", &self.kernel.display().to_string(), "-initrd", &place("initrd")])
            // The kernel's look at its timer fails where the emulator waits for its turn.
            .args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"])
            .args(["-drive", &format!("file={},format=raw,if=none,id=disk,cache=writeback", place("disk"))])
            .args(["-device", "virtio-blk-pci,drive=disk,romfile="])
            .args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="])
            .args(["-serial", &format!("unix:{},server=on,wait=off", place("second"))])
            .stdin(Stdio::null())
            .stdout(serial.try_clone()?)
            .stderr(serial)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Takes its power away.
    ///
    /// # Errors
    /// When QEMU cannot be killed.
    pub fn cut(&mut self) -> Result<(), Trouble> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Its second serial line (`/dev/ttyS1`).
    ///
    /// # Errors
    /// When it is off.
    pub fn second_line(&self) -> Result<UnixStream, Trouble> {
        let began = Instant::now();
        loop {
            match UnixStream::connect(self.folder.path().join("second")) {
                Ok(stream) => return Ok(stream),
                // QEMU is just beginning.
                Err(_) if began.elapsed() < Duration::from_secs(30) => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for it to switch itself off, as it does instead of booting anew.
    ///
    /// # Errors
    /// When it is still on after `timeout`.
    pub fn wait_off(&mut self, timeout: Duration) -> Result<(), Trouble> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let began = Instant::now();
        while child.try_wait()?.is_none() {
            if began.elapsed() >= timeout {
                return Err("the machine does not switch itself off".into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.child = None;
        Ok(())
    }

    /// What it printed on its serial line.
    #[must_use]
    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path().join("serial.log")).unwrap_or_default())
            .into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.cut();
    }
}

/// A registration with the stand-in under these labels, as the machine sees it.
///
/// # Errors
/// What the program said.
pub fn registration(sower: &Path, forge: &Forge, labels: &str) -> Result<String, Trouble> {
    let runner = Runner::new(&sower.display().to_string(), 1)?;
    let output = runner.register(&forge.url(), &forge.registration_token(), labels, &[])?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(fs::read_to_string(runner.state_file())?.replace("127.0.0.1", GATEWAY))
}

/// Writes a `cpio` archive as the kernel wants it ("newc").
fn cpio(entries: &[(String, u32, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let end = ("TRAILER!!!".to_owned(), 0, Vec::new());
    for (number, (name, mode, content)) in entries.iter().chain([&end]).enumerate() {
        let mut header = "070701".to_owned();
        let fields = [number, *mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        for field in fields {
            let _ = write!(header, "{field:08x}");
        }
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if entry.file_name() == name {
            return Some(path);
        }
    }
    None
}

/// The initial file system: busybox, the programs with what they are linked to, the modules.
fn initrd(build: &Build<'_>) -> Result<Vec<u8>, Trouble> {
    let mut entries: Vec<(String, u32, Vec<u8>)> = Vec::new();
    for folder in ["bin", "dev", "proc", "sys", "tmp", "data", "etc", "modules", "lib", "lib64", "usr"] {
        entries.push((folder.to_owned(), 0o040_755, Vec::new()));
    }
    entries.push(("bin/busybox".to_owned(), 0o100_755, fs::read("/bin/busybox")?));
    entries.push((
        "init".to_owned(),
        0o100_755,
        (BOOT.replace("MODULES", &MODULES.join(" ")) + build.init).into_bytes(),
    ));
    entries.push(("etc/config.yaml".to_owned(), 0o100_644, build.config.into()));
    for name in MODULES {
        if let Some(file) = find(build.modules, &format!("{name}.ko")) {
            entries.push((format!("modules/{name}.ko"), 0o100_644, fs::read(file)?));
        }
    }
    let mut made = vec!["lib".to_owned(), "lib64".to_owned(), "usr".to_owned()];
    let programs = build
        .programs
        .iter()
        .map(|program| (program.rsplit('/').next().unwrap_or(program), Path::new(program)));
    for (name, program) in [("sower", build.sower)].into_iter().chain(programs) {
        entries.push((format!("bin/{name}"), 0o100_755, fs::read(program)?));
        let linked = Command::new("ldd").arg(program).output()?;
        let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
        for word in linked.split_whitespace().filter(|word| word.starts_with('/')) {
            let name = word.trim_start_matches('/').to_owned();
            if made.contains(&name) {
                continue;
            }
            for (at, _) in name.match_indices('/') {
                if !made.contains(&name[..at].to_owned()) {
                    made.push(name[..at].to_owned());
                    entries.push((name[..at].to_owned(), 0o040_755, Vec::new()));
                }
            }
            made.push(name.clone());
            entries.push((name, 0o100_755, fs::read(word)?));
        }
    }
    Ok(cpio(&entries))
}
