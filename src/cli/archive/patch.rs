//! `sower archive patch`: Mend an archive.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Outcome, say, sources};
use crate::archive::donor::Source;
use crate::archive::mend::{MendError, Mended, Options, mend};
use crate::archive::{kept, words};

/// Mend an archive from a whole copy of it.
///
/// A copy is compared with what of the archive is still there before anything is written; the result is checked, and hashed
/// where Nix knows the hash, before it takes the archive's place in one step. Of a distant copy only the missing part is fetched.
/// Keys for ssh:// come from ~/.ssh, the agent or SOWER_SSH_KEY.
/// Exit code: 0 it is sound now (or could be, with --dry-run), 1 it is not, 2 it could not be asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sower archive patch /nix/store/…-ghc-9.10.3/lib/…/libHSghc-9.10.3.a
  sower archive patch libfoo.a --from /mnt/backup/libfoo.a --from nix --dry-run
  sower archive patch libfoo.a --from https://files.example.org/libfoo.a --keep-old
  sower archive patch /nix/store/…/libfoo.a --from ssh://build@other.example.org/nix/store/…/libfoo.a")]
pub(super) struct Args {
    /// The archive
    path: PathBuf,
    /// Where a whole copy may be: `nix` (the configured substituters), a file, a directory or another store, http(s)://, ssh://host/path, a binary cache; tried in order [default: nix]
    #[arg(long, value_name = "SOURCE")]
    from: Vec<String>,
    /// Say what would be done and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Where no source helps: keep the members that are whole, with a symbol table of them alone
    #[arg(long)]
    salvage: bool,
    /// Keep the old file, so that --undo can put it back
    #[arg(long)]
    keep_old: bool,
    /// Put the old file of the last mend back
    #[arg(long, conflicts_with_all = ["from", "dry_run", "salvage", "keep_old"])]
    undo: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    if args.undo {
        let record = kept::undo(&args.path).map_err(|error| match error {
            kept::UndoError::NothingKept { .. } => Failure::wrong_question(error),
            other => Failure::not_well(other),
        })?;
        say(&format!("put back   {}: sha256 {}", args.path.display(), record.before))?;
        return Ok(ExitCode::SUCCESS);
    }
    let sources = if args.salvage && args.from.is_empty() { Vec::new() } else { sources(&args.from)? };
    for source in &sources {
        if let Source::Path(path) = source
            && !path.exists()
        {
            return Err(Failure::wrong_question(format!("--from {}: it is not there", path.display())));
        }
    }
    let options = Options { dry_run: args.dry_run, keep_old: args.keep_old, salvage: args.salvage };
    match mend(&args.path, &sources, &options, &mut |notice| eprintln!("{notice}")) {
        Ok(mended) => {
            say(&tell(&mended))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error @ MendError::Check(_)) => Err(Failure::wrong_question(error)),
        Err(error) => Err(Failure::not_well(error)),
    }
}

/// What a mend did, in words; also into the job's summary, if there is one.
pub(super) fn tell(mended: &Mended) -> String {
    match mended {
        Mended::Sound(report) => format!("{}; nothing to mend", words::text(report)),
        Mended::Would { before, plan } => format!("{}\n{plan}; nothing was written", words::text(before)),
        Mended::Done(done) => {
            if let Err(error) = summarise(&words::mend_summary(done)) {
                eprintln!("sower: the job summary could not be written: {error}");
            }
            words::mended(done)
        }
    }
}

fn summarise(markdown: &str) -> std::io::Result<()> {
    let Some(file) = std::env::var_os("GITHUB_STEP_SUMMARY").filter(|file| !file.is_empty()) else {
        return Ok(());
    };
    std::fs::OpenOptions::new().append(true).create(true).open(file)?.write_all(markdown.as_bytes())
}
