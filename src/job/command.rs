//! Workflow commands: the lines by which a step talks to the runner.
//!
//! `::name key=value,key=value::data` and the older `##[name key=value;key=value]data`. Source: GitHub's
//! documentation, "Workflow commands for GitHub Actions".

/// A command that a step printed. Data and properties are unescaped.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// An output of the step.
    SetOutput {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// A value for the action's later phases.
    SaveState {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// A variable for later steps: refused unless the workflow allows it, since any output could set it.
    SetEnv {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// A directory for the path of later steps: refused unless the workflow allows it.
    AddPath(String),
    /// Mask this value from now on.
    AddMask(String),
    /// Take no commands until this token comes as a command.
    StopCommands(String),
    /// A row that is shown when debugging is on.
    Debug(String),
    /// A notice, a warning or an error, perhaps with a place in a file.
    Annotation {
        /// `notice`, `warning` or `error`.
        level: &'static str,
        /// `file:line:column: title: `, as far as given; empty when nothing is.
        prefix: String,
        /// The message; it may have several lines.
        message: String,
    },
    /// Begins a group of rows.
    Group(String),
    /// Ends it.
    EndGroup,
    /// Shows the commands themselves from now on, or no longer.
    Echo(bool),
    /// Puts the problem matchers of a file in force.
    AddMatcher(String),
    /// Puts the problem matcher of an owner out of force.
    RemoveMatcher(String),
    /// Puts the problem matchers of a file out of force.
    RemoveMatcherFile(String),
    /// A command that is used wrongly, and why.
    Wrong(&'static str),
}

/// The command in a line, if it is one. `##[group]` and its kin count too.
#[must_use]
pub fn parse(line: &str) -> Option<Command> {
    let line = line.trim_start();
    let (head, data, separator) = if let Some(rest) = line.strip_prefix("::") {
        let (head, data) = rest.split_once("::")?;
        (head, data, ',')
    } else {
        let rest = line.strip_prefix("##[")?;
        let (head, data) = rest.split_once(']')?;
        (head, data, ';')
    };
    let (name, properties) = head.split_once(' ').unwrap_or((head, ""));
    let property = |wanted: &str| {
        properties.split(separator).find_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            key.trim().eq_ignore_ascii_case(wanted).then(|| unescape(value, true))
        })
    };
    let named = || property("name").filter(|name| !name.is_empty());
    let value = || unescape(data, false);
    Some(match name.to_ascii_lowercase().as_str() {
        "set-output" => Command::SetOutput { name: named()?, value: value() },
        "save-state" => Command::SaveState { name: named()?, value: value() },
        "set-env" => Command::SetEnv { name: named()?, value: value() },
        "add-path" => Command::AddPath(value()),
        "add-mask" if data.trim().is_empty() => {
            Command::Wrong("::add-mask:: takes a value that is not empty")
        }
        "add-mask" => Command::AddMask(value()),
        "stop-commands" if data.trim().is_empty() => Command::Wrong("::stop-commands:: takes a token"),
        "stop-commands" => Command::StopCommands(value()),
        "debug" => Command::Debug(value()),
        "notice" => annotation("notice", data, property),
        "warning" => annotation("warning", data, property),
        "error" => annotation("error", data, property),
        "group" => Command::Group(value()),
        "endgroup" => Command::EndGroup,
        "echo" => match data.trim().to_ascii_lowercase().as_str() {
            "on" => Command::Echo(true),
            "off" => Command::Echo(false),
            _ => Command::Wrong("::echo:: takes on or off"),
        },
        "add-matcher" if data.trim().is_empty() => Command::Wrong("::add-matcher:: takes the path of a file"),
        "add-matcher" => Command::AddMatcher(value()),
        "remove-matcher" => match (property("owner").filter(|owner| !owner.is_empty()), data.trim()) {
            (Some(owner), _) => Command::RemoveMatcher(owner),
            (None, "") => Command::Wrong("::remove-matcher:: takes an owner or the path of a file"),
            (None, _) => Command::RemoveMatcherFile(value()),
        },
        _ => return None,
    })
}

/// Whether the line is the command that ends a `stop-commands`.
#[must_use]
pub fn resumes(line: &str, token: &str) -> bool {
    let line = line.trim();
    line.strip_prefix("::").and_then(|rest| rest.strip_suffix("::")).is_some_and(|inner| inner == token)
}

fn annotation(level: &'static str, data: &str, property: impl Fn(&str) -> Option<String>) -> Command {
    let mut prefix = String::new();
    if let Some(file) = property("file").filter(|file| !file.is_empty()) {
        prefix.push_str(&file);
        for key in ["line", "col"] {
            match property(key).filter(|number| !number.is_empty()) {
                Some(number) => {
                    prefix.push(':');
                    prefix.push_str(&number);
                }
                None => break,
            }
        }
        prefix.push_str(": ");
    }
    if let Some(title) = property("title").filter(|title| !title.is_empty()) {
        prefix.push_str(&title);
        prefix.push_str(": ");
    }
    Command::Annotation { level, prefix, message: unescape(data, false) }
}

fn unescape(text: &str, property: bool) -> String {
    let mut out = text.replace("%0D", "\r").replace("%0A", "\n");
    if property {
        out = out.replace("%3A", ":").replace("%2C", ",");
    }
    // Last, or a `%250A` would become a newline.
    out.replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let output =
            |name: &str, value: &str| Command::SetOutput { name: name.to_owned(), value: value.to_owned() };
        assert_eq!(parse("::set-output name=a::b=c::d"), Some(output("a", "b=c::d")));
        assert_eq!(parse("  ::set-output name=a%3Ab,x=y::1%0A2%25"), Some(output("a:b", "1\n2%")));
        assert_eq!(parse("##[set-output name=a;x=y]v"), Some(output("a", "v")));
        assert_eq!(parse("##[group]Build"), Some(Command::Group("Build".to_owned())));
        assert_eq!(parse("::ENDGROUP::"), Some(Command::EndGroup));
    }

    #[test]
    fn places_come_before_the_message() {
        let Some(Command::Annotation { level, prefix, message }) =
            parse("::error file=a.c,line=1,col=7,title=Oh::bad%0Athing")
        else {
            panic!("no annotation")
        };
        assert_eq!((level, prefix.as_str(), message.as_str()), ("error", "a.c:1:7: Oh: ", "bad\nthing"));
    }

    #[test]
    fn matchers_come_and_go_by_owner_or_file() {
        assert_eq!(parse("::add-matcher::a/b.json"), Some(Command::AddMatcher("a/b.json".to_owned())));
        assert_eq!(parse("::remove-matcher owner=gcc::"), Some(Command::RemoveMatcher("gcc".to_owned())));
        assert_eq!(parse("::remove-matcher::a.json"), Some(Command::RemoveMatcherFile("a.json".to_owned())));
        assert_eq!(parse("::echo::ON"), Some(Command::Echo(true)));
        for wrong in
            ["::echo::x", "::remove-matcher::", "::add-matcher:: ", "::add-mask::", "::stop-commands::"]
        {
            assert!(matches!(parse(wrong), Some(Command::Wrong(_))), "{wrong}");
        }
    }

    #[test]
    fn other_lines_are_no_commands() {
        for line in
            ["", "::", ":: ::", "::no end", "a::group::b", "::frobnicate::x", "::set-output::x", "##[x"]
        {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn commands_resume_at_their_token_only() {
        assert!(resumes("::tok-1::", "tok-1"));
        assert!(!resumes("::tok-2::", "tok-1"));
        assert!(!resumes("::tok-1::x", "tok-1"));
    }
}
