//! The runner of the demo: the real binary, registered and running as a daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use crate::damage::NIX_CONFIG;
use crate::processes::{self, Interrupt};
use crate::trouble::{At, Trouble};

/// The label that `workflows/deploy.yaml` asks for.
pub(crate) const LABEL: &str = "haskelseed";

/// The daemon while it runs.
pub(crate) struct Runner {
    child: Child,
    /// Its own words.
    pub(crate) log: PathBuf,
}

impl Runner {
    /// Registers a runner with the forge and starts its daemon.
    pub(crate) fn start(
        sower: &Path,
        place: &Path,
        parts: &Path,
        forge: &str,
        token: &str,
        log: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self, Trouble> {
        fs::create_dir_all(place).at(place)?;
        let config = place.join("config.yaml");
        fs::write(&config, configuration(place)).at(&config)?;
        // What a build host's service has: the system's programs, helm and kubectl, and no Node.js.
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", parts.display());
        let command = |verb: &str| {
            let mut command = Command::new(sower);
            command.arg(verb).arg("-c").arg(&config);
            command.env_clear().env("PATH", &path).env("HOME", place).env("LANG", "C.UTF-8");
            command
        };
        let labels = format!("{LABEL}:host");
        interrupt.run(
            command("register")
                .args([
                    "--no-interactive",
                    "--instance",
                    forge,
                    "--token",
                    token,
                    "--name",
                    "demo",
                    "--labels",
                ])
                .arg(labels),
            log,
        )?;
        let mut daemon = command("daemon");
        daemon.stdout(processes::append(log)?).stderr(processes::append(log)?);
        Ok(Self { child: processes::start(&mut daemon)?, log: log.to_owned() })
    }

    /// How the daemon ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(format!("the daemon ended ({status}); its last words:\n{}", processes::tail(&self.log)))
    }

    /// Resident memory of the daemon in bytes.
    pub(crate) fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    }
}

impl Drop for Runner {
    /// The daemon leaves its jobs running, as it should; [`processes::end_all`] ends them.
    fn drop(&mut self) {
        processes::stop(&mut self.child, Duration::from_secs(5));
    }
}

/// As on a build host, but for the place and for Nix, which `/etc/nix/nix.conf` tells there.
fn configuration(place: &Path) -> String {
    let nix = NIX_CONFIG.lines().map(|line| format!("      {line}\n")).collect::<String>();
    format!("runner:\n  file: {}\n  envs:\n    NIX_CONFIG: |\n{nix}", place.join(".runner").display())
}
