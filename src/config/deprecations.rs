//! What is worth a word in the log although it is granted: older spellings, and options that do less than
//! their name says.

use super::arguments::Arguments;
use super::values::InodeFileHandles;

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deprecation {
    /// Change the command line.
    Warn(String),
    /// Nothing to change.
    Info(String),
}

/// What there is to say about `arguments`, one sentence each.
pub fn deprecations(arguments: &Arguments) -> Vec<Deprecation> {
    let a = arguments;
    let mut said = Vec::new();
    let mut warn = |is_so: bool, text: &str| {
        if is_so {
            said.push(Deprecation::Warn(text.to_owned()));
        }
    };
    warn(a.socket.is_some(), "--socket is an older name; write --socket-path");
    warn(a.compat_foreground, "-f has no effect: the daemon stays in the foreground; leave it out");
    warn(a.compat_debug, "-d is an older spelling; write --log-level debug");
    warn(!a.compat_options.is_empty(), "-o is an older spelling; write each option of its own, as --cache auto for -o cache=auto");
    warn(a.inode_file_handles == InodeFileHandles::Fallback, "--inode-file-handles fallback is an older name; write prefer");
    // Also where the default is named.
    let names_migration =
        a.migration_mode.is_some() || a.migration_on_error.is_some() || a.migration_verify_handles || a.migration_confirm_paths;
    warn(names_migration, "the --migration options have no effect: a machine with this share cannot migrate");
    if a.thread_pool_size > 1 {
        let n = a.thread_pool_size;
        said.push(Deprecation::Info(format!(
            "--thread-pool-size {n}: at most {n} thread(s) serve each queue; there is no pool to size, threads come and go with the requests"
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
    fn older_spellings_are_warned_of_with_the_newer_one() {
        let cases = [
            ("--socket /s", "--socket-path"),
            ("-f", "leave it out"),
            ("-d", "--log-level debug"),
            ("-o cache=auto,xattr -o writeback", "--cache auto"),
            ("--inode-file-handles=fallback", "prefer"),
            ("--migration-mode=file-handles --migration-on-error guest-error", "cannot migrate"),
            ("--migration-mode find-paths", "cannot migrate"),
            ("--migration-on-error=abort", "cannot migrate"),
            ("--migration-verify-handles", "cannot migrate"),
            ("--migration-confirm-paths", "cannot migrate"),
        ];
        for (line, advice) in cases {
            let said = said(line);
            assert!(matches!(&said[..], [Deprecation::Warn(text)] if text.contains(advice)), "{line}: {said:?}");
        }
    }

    #[test]
    fn nothing_is_said_of_a_plain_command_line() {
        assert_eq!(said("--shared-dir /d --socket-path /s --cache never --thread-pool-size=0"), []);
        assert!(matches!(&said("--thread-pool-size 2")[..], [Deprecation::Info(text)] if text.contains("at most 2 thread")));
    }
}
