//! The policies in effect and what they turn off, for the log at start.

use clap::ValueEnum;

use super::arguments::Arguments;
use super::values::{Cache, InodeFileHandles, Tmpfile};

/// The policies in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySummary {
    /// Cache policy, sandbox, seccomp action and locks.
    pub policies: String,
    /// Features that are on by default, each with the option that turned it off.
    pub turned_off: Vec<String>,
}

fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The policies of `arguments`.
pub fn policy_summary(arguments: &Arguments) -> PolicySummary {
    let a = arguments;
    let policies =
        format!("cache {}, sandbox {}, seccomp {}, locks {}", name(&a.cache), name(&a.sandbox), name(&a.seccomp), name(&a.locks));
    let off = [
        (a.no_readdirplus, "READDIRPLUS (--no-readdirplus)"),
        (!a.no_readdirplus && a.cache == Cache::Never, "READDIRPLUS (--cache never)"),
        (a.no_announce_submounts || !a.announce_submounts, "submounts (--no-announce-submounts)"),
        (a.tmpfile == Tmpfile::Never, "O_TMPFILE (--tmpfile never)"),
        (a.inode_file_handles == InodeFileHandles::Never, "file handles (--inode-file-handles never)"),
        (a.readonly, "changes (--readonly)"),
    ];
    PolicySummary { policies, turned_off: off.into_iter().filter(|(is_off, _)| *is_off).map(|(_, what)| what.to_owned()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command_line::parse;

    fn summary_of(line: &str) -> PolicySummary {
        policy_summary(&parse(std::iter::once("gatherfsd").chain(line.split_whitespace()).map(Into::into)).unwrap())
    }

    #[test]
    fn the_policies_are_named_as_their_options_spell_them() {
        let by_default = summary_of("--shared-dir /d");
        assert!(by_default.policies.starts_with("cache auto, sandbox namespace, seccomp kill, locks "), "{by_default:?}");
        assert!(by_default.turned_off.is_empty(), "{by_default:?}");
        let chosen = summary_of("--cache ALWAYS --sandbox none --seccomp=log --locks guest").policies;
        assert_eq!(chosen, "cache always, sandbox none, seccomp log, locks guest");
    }

    #[test]
    fn what_an_option_turns_off_is_named_with_the_option() {
        let cases = [
            ("--no-readdirplus --cache never", "READDIRPLUS (--no-readdirplus)"),
            ("--cache never", "READDIRPLUS (--cache never)"),
            ("--no-announce-submounts", "submounts (--no-announce-submounts)"),
            ("--announce-submounts=false", "submounts (--no-announce-submounts)"),
            ("--tmpfile never", "O_TMPFILE (--tmpfile never)"),
            ("--inode-file-handles never", "file handles (--inode-file-handles never)"),
            ("--readonly", "changes (--readonly)"),
        ];
        for (line, what) in cases {
            assert_eq!(summary_of(line).turned_off, [what], "{line}");
        }
    }
}
