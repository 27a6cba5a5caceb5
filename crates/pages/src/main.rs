//! Writes the manual pages and shell completions of `sower` below a folder. A program of its own, so that the
//! binary on the host does not carry the generators.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap_complete::{Shell, generate_to};

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: sower-pages DIR");
        return ExitCode::from(2);
    };
    match write(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sower-pages: {}: {error}", Path::new(&folder).display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> io::Result<()> {
    let command = sower::cli::command().max_term_width(100);
    let man = folder.join("man");
    fs::create_dir_all(&man)?;
    clap_mangen::generate_to(command.clone(), &man)?;
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command.clone(), "sower", &completions)?;
    }
    Ok(())
}
