//! Whether a helm works on a release right now, as far as the processes of this host, and of the one that SSH leads to,
//! show it. helm notes nowhere who holds a release.

use std::fs;

use super::Access;

/// Prints each process whose command line has `helm` in it: `== PID`, then its arguments, one a line.
const FAR_PROCESSES: &str = r#"
for file in $(grep -l helm /proc/[0-9]*/cmdline 2>/dev/null); do
    process=${file#/proc/}
    echo "== ${process%/cmdline}"
    tr '\0' '\n' <"$file" 2>/dev/null
done
"#;
/// The most that is read of that, in bytes.
const FAR_LIMIT: usize = 256 << 10;

impl Access {
    /// The helm that works on the release, in words.
    pub(super) fn helm_at_work(&self, release: &str, namespace: &str) -> Option<String> {
        if let Some(process) = here(release, namespace) {
            return Some(format!("helm, process {process} of this host"));
        }
        let (host, answer) = self.ask_far_side(FAR_PROCESSES, FAR_LIMIT)?;
        let process = there(&answer, release, namespace)?;
        Some(format!("helm, process {process} of {host}"))
    }
}

fn here(release: &str, namespace: &str) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|process| {
        // Gone meanwhile, or not ours to look at.
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        works_on(&line.split('\0').collect::<Vec<_>>(), release, namespace)
    })
}

fn there(answer: &str, release: &str, namespace: &str) -> Option<u32> {
    answer.split("== ").find_map(|process| {
        let mut lines = process.lines();
        let number = lines.next()?.trim().parse().ok()?;
        works_on(&lines.collect::<Vec<_>>(), release, namespace).then_some(number)
    })
}

/// Whether these are the arguments of a helm that changes the release.
fn works_on(arguments: &[&str], release: &str, namespace: &str) -> bool {
    let Some((program, rest)) = arguments.split_first() else { return false };
    let is_helm = program.rsplit('/').next().is_some_and(|name| name == "helm");
    let changes = rest.iter().any(|word| {
        matches!(*word, "upgrade" | "install" | "rollback" | "uninstall" | "delete" | "un" | "del")
    });
    let namespaces = rest.windows(2).filter_map(|pair| match pair {
        ["--namespace" | "-n", name] => Some(*name),
        _ => None,
    });
    let glued =
        rest.iter().filter_map(|word| word.strip_prefix("--namespace=").or_else(|| word.strip_prefix("-n=")));
    // Without one it may be any: that of the kubeconfig's context.
    let elsewhere = namespaces.chain(glued).any(|name| name != namespace);
    is_helm && changes && rest.contains(&release) && !elsewhere
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helm_that_works_on_the_release_is_known_by_its_arguments() {
        let works = |line: &str| works_on(&line.split(' ').collect::<Vec<_>>(), "app", "web");
        assert!(works("/usr/local/bin/helm upgrade --install app ./chart -n web"));
        assert!(works("helm rollback app 3"));
        for line in [
            "helm upgrade app ./chart --namespace other",
            "helm upgrade app ./chart --namespace=other",
            "helm upgrade other ./chart -n web",
            "helm history app -n web",
            "vim helm upgrade app",
            "",
        ] {
            assert!(!works(line), "{line}");
        }
        let answer = "== 7\nhelm\nlist\n== 12\n/opt/bin/helm\nupgrade\napp\n./chart\n";
        assert_eq!(there(answer, "app", "web"), Some(12));
        assert_eq!(there(answer, "db", "web"), None);
    }
}
