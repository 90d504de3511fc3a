//! Options that are deprecated, have no effect, or mean something else than in virtiofsd: messages for the log at start.

use super::arguments::Arguments;
use super::values::InodeFileHandles;

/// A message for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deprecation {
    /// The command line should be changed.
    Warn(String),
    /// Information only.
    Info(String),
}

/// The messages about `arguments`, one sentence each.
pub fn deprecations(arguments: &Arguments) -> Vec<Deprecation> {
    let a = arguments;
    let mut said = Vec::new();
    let mut warn = |is_so: bool, text: &str| {
        if is_so {
            said.push(Deprecation::Warn(text.to_owned()));
        }
    };
    warn(a.socket.is_some(), "--socket is deprecated; use --socket-path");
    warn(a.compat_foreground, "-f has no effect: the daemon always stays in the foreground; leave it out");
    warn(a.compat_debug, "-d is deprecated; use --log-level debug");
    warn(!a.compat_options.is_empty(), "-o is deprecated; use an option for each item, for example --cache auto for -o cache=auto");
    warn(a.inode_file_handles == InodeFileHandles::Fallback, "--inode-file-handles fallback is deprecated; use prefer");
    // Also if the value is the default.
    let names_migration =
        a.migration_mode.is_some() || a.migration_on_error.is_some() || a.migration_verify_handles || a.migration_confirm_paths;
    warn(names_migration, "the --migration options have no effect: gatherfsd does not support migration; leave them out");
    if a.thread_pool_size > 1 {
        let n = a.thread_pool_size;
        said.push(Deprecation::Info(format!(
            "--thread-pool-size {n}: at most {n} threads per queue; threads are started while requests wait, and exit when idle"
        )));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn said(line: &str) -> Vec<Deprecation> {
        deprecations(&Arguments::try_parse_from(std::iter::once("gatherfsd").chain(line.split_whitespace())).unwrap())
    }

    #[test]
    fn deprecated_spellings_are_warned_of_with_the_current_one() {
        let cases = [
            ("--socket /s", "--socket-path"),
            ("-f", "leave it out"),
            ("-d", "--log-level debug"),
            ("-o cache=auto,xattr -o writeback", "--cache auto"),
            ("--inode-file-handles=fallback", "prefer"),
            ("--migration-mode=file-handles --migration-on-error guest-error", "does not support migration"),
            ("--migration-mode find-paths", "does not support migration"),
            ("--migration-on-error=abort", "does not support migration"),
            ("--migration-verify-handles", "does not support migration"),
            ("--migration-confirm-paths", "does not support migration"),
        ];
        for (line, advice) in cases {
            let said = said(line);
            assert!(matches!(&said[..], [Deprecation::Warn(text)] if text.contains(advice)), "{line}: {said:?}");
        }
    }

    #[test]
    fn nothing_is_said_of_a_plain_command_line() {
        assert_eq!(said("--shared-dir /d --socket-path /s --cache never --thread-pool-size=0"), []);
        assert!(matches!(&said("--thread-pool-size 2")[..], [Deprecation::Info(text)] if text.contains("at most 2 threads")));
    }
}
