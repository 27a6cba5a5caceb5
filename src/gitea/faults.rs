//! What a configuration says that is well written and will not work here: a size that GHC does not take, a hook that
//! is not there.

use rustix::fs::{Access, access};

use super::notify::Alarm;
use crate::config::Config;
use crate::limits::ceiling::Ceiling;

/// Everything that is wrong, each with its key.
#[must_use]
pub fn faults(config: &Config) -> Vec<String> {
    let mut faults: Vec<String> = Vec::new();
    faults.extend(Ceiling::of(&config.ghc).err());
    faults.extend(config.step_env().err().map(|error| format!("runner.env_file: {error}")));
    let hooks = [("job_started", &config.hooks.job_started), ("job_completed", &config.hooks.job_completed)];
    for (key, program) in hooks {
        let Some(program) = program else { continue };
        let why = match program.metadata() {
            Err(error) => error.to_string(),
            Ok(meta) if !meta.is_file() => "no program".to_owned(),
            Ok(_) if access(program, Access::EXEC_OK).is_err() => {
                format!("it cannot be run; chmod 755 {}", program.display())
            }
            Ok(_) => continue,
        };
        faults.push(format!("hooks.{key}: {}: {why}; with it every job fails", program.display()));
    }
    faults.extend(Alarm::of(&config.notify).err().map(|error| match error.starts_with("notify.") {
        true => error,
        false => format!("notify: {error}"),
    }));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn what_will_not_work_is_told_by_its_key() {
        let mut config = Config::default();
        assert_eq!(faults(&config), [""; 0]);
        config.ghc.heap = Some("2gb".to_owned());
        config.hooks.job_started = Some(PathBuf::from("/nonexistent/hook"));
        config.hooks.job_completed = Some(PathBuf::from("/"));
        config.notify.url_file = Some(PathBuf::from("/nonexistent/url"));
        let told = faults(&config);
        for (fault, begin) in told.iter().zip([
            "ghc.heap: `2gb`",
            "hooks.job_started: /nonexistent/hook: No such file",
            "hooks.job_completed: /: no program",
            "notify: /nonexistent/url: No such file",
        ]) {
            assert!(fault.starts_with(begin), "{fault}");
        }
        assert_eq!(told.len(), 4);
    }
}
