//! How a subcommand fails: a message for people and one of two exit codes.

use std::fmt;
use std::process::ExitCode;

/// What a subcommand gives back: an exit code of its own, or a failure that is printed on stderr.
pub type Outcome = Result<ExitCode, Failure>;

/// Why a subcommand did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    last: bool,
}

impl Failure {
    /// The thing asked about is not well: exit code 1.
    pub fn not_well(message: impl fmt::Display) -> Self {
        Self { code: 1, message: message.to_string(), last: false }
    }

    /// The question itself was wrong (arguments, a file that is not there): exit code 2.
    pub fn wrong_question(message: impl fmt::Display) -> Self {
        Self { code: 2, message: message.to_string(), last: false }
    }

    /// There is no use in asking again.
    #[must_use]
    pub fn for_good(self) -> Self {
        Self { last: true, ..self }
    }

    /// Whether there is no use in asking again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.last
    }

    /// The exit code to leave with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
