//! `sower job DIR`: runs the job that waits in a job directory. The daemon starts it; it is not for people.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::events::bound::Bounded;
use crate::events::journal::Writer;
use crate::housekeeping;
use crate::job::executor;
use crate::job::process::Control;
use crate::job::spec::JobSpec;
use crate::job::tree;
use crate::limits::ceiling::Ceiling;
use crate::limits::run;
use crate::supervisor::{self, JobDir};

use super::{Failure, Outcome};

/// Run the job in a job directory (used by the daemon).
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Args {
    /// The job directory: `spec.json` is read and removed, `journal` is written.
    directory: PathBuf,
}

/// How often what was written is made to outlast a power cut.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(args: &Args) -> Outcome {
    // The job outlives the daemon: a session of its own, and its orphans stay with it.
    let _ = rustix::process::setsid();
    tree::adopt_orphans().map_err(Failure::not_well)?;
    let directory = JobDir::at(&args.directory);
    let spec_path = directory.spec();
    let text = fs::read(&spec_path).map_err(|error| Failure::wrong_question(named(&spec_path, &error)))?;
    let mut spec: JobSpec = serde_json::from_slice(&text)
        .map_err(|error| Failure::wrong_question(format!("{}: {error}", spec_path.display())))?;
    drop(text);
    // While this process has one thread: mounts of its own are for what it starts.
    if let Ok(Some(ceiling)) = Ceiling::of(&spec.memory.ghc) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        spec.head.extend(run::cover_host(&path, &ceiling));
    }
    let control = Control::new().map_err(Failure::not_well)?;
    control.cancel_on(signal_hook::consts::SIGINT).map_err(Failure::not_well)?;
    control.end_on_terminate().map_err(Failure::not_well)?;
    let gc_lock = match &spec.operator.gc_lock {
        Some(path) => {
            let begun = std::time::Instant::now();
            let lock = housekeeping::hold_for_job(path, || !control.is_cancelled());
            let waited = begun.elapsed().as_secs();
            if waited > 0 {
                spec.head.push(format!("Waited {waited} s for the cleaning of the Nix store to end"));
            }
            lock.inspect_err(|error| spec.head.push(format!("{}: {error}", path.display()))).ok().flatten()
        }
        None => None,
    };
    let mut journal = Writer::create(&directory.journal()).map_err(Failure::not_well)?;
    directory.reserve().map_err(Failure::not_well)?;
    let members = supervisor::enter(&directory).map_err(Failure::not_well)?;
    // It holds secrets, and whoever finds the journal knows that the job has begun.
    fs::remove_file(&spec_path).map_err(|error| Failure::not_well(named(&spec_path, &error)))?;
    // Before the first step: after a power cut nobody may think that the job has not begun.
    journal.sync().map_err(Failure::not_well)?;
    directory.sync().map_err(Failure::not_well)?;
    let file = journal.sync_handle().map_err(Failure::not_well)?;
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(SYNC_INTERVAL);
            // What cannot be synced now may be at the next turn; the reporter reads it in either case.
            let _ = file.sync_data();
        }
    });
    let mut bounded = Bounded::new(&mut journal, spec.journal_limit);
    let ended = executor::run(&spec, &mut bounded, &control, members);
    drop(gc_lock);
    // Whether it is written here or by the daemon: the end needs room.
    directory.release();
    ended.map_err(|error| Failure::not_well(named(&directory.journal(), &error)))?;
    journal.sync().map_err(Failure::not_well)?;
    Ok(ExitCode::SUCCESS)
}

fn named(path: &std::path::Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
