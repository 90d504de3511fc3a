//! Wishes that do not fit together, and what is the default where nothing was said.

use std::path::PathBuf;

use super::listen::Listening;
use super::{Arguments, Cache, InodeFileHandles, Sandbox};
use crate::device::{ConfigSpace, REQUEST_QUEUES_MAX, TagError};
use crate::host::{CachePolicy, Descriptors, FileHandles, Options, Timeouts};
use crate::sandbox::Mode;

/// The tag for monitors that ask, when none was given.
const TAG_DEFAULT: &str = "gatherfs";

/// A wish that cannot be granted, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No directory.
    #[error("say what to share: --shared-dir DIR")]
    NoSharedDir,
    /// No socket.
    #[error("say where to listen: --socket-path PATH, or --fd N for a socket that was inherited")]
    NoSocket,
    /// Two sockets.
    #[error("--socket-path and --fd are two places to listen; give one of them")]
    TwoSockets,
    /// A group for a socket that is not ours.
    #[error("--socket-group goes with --socket-path; whoever made the socket of --fd has chosen its group")]
    GroupOfInherited,
    /// Not a descriptor, or one of the standard ones.
    #[error("--fd {0} is no inherited socket; give its number, 3 or higher")]
    BadFd(i32),
    /// The tag does not fit.
    #[error("--tag: {0}")]
    Tag(#[from] TagError),
    /// No or too many queues.
    #[error("--num-request-queues {0} is not possible; give 1 to {REQUEST_QUEUES_MAX}")]
    Queues(u16),
}

/// Wishes that fit together.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Where to listen.
    pub listening: Listening,
    /// The configuration space for monitors that ask.
    pub config_space: ConfigSpace,
    /// The tag in it.
    pub tag: String,
    /// How to confine the daemon.
    pub sandbox: Mode,
    /// The share; `descriptors` is set when the limit of open files is known.
    pub share: Options,
    /// The limit of open files that was asked for.
    pub open_files: Option<u64>,
    /// Whether to wait for the next monitor.
    pub keep_listening: bool,
}

/// Checks `arguments`; `is_root` decides the default sandbox, `cpus` the default number of queues.
pub fn check(arguments: &Arguments, is_root: bool, cpus: usize) -> Result<Checked, ConfigError> {
    let a = arguments;
    let shared_dir: PathBuf = a.shared_dir.clone().ok_or(ConfigError::NoSharedDir)?;
    let listening = match (&a.socket_path, a.fd) {
        (Some(_), Some(_)) => return Err(ConfigError::TwoSockets),
        (None, None) => return Err(ConfigError::NoSocket),
        (None, Some(_)) if a.socket_group.is_some() => return Err(ConfigError::GroupOfInherited),
        (None, Some(fd)) if fd <= 2 => return Err(ConfigError::BadFd(fd)),
        (None, Some(fd)) => Listening::Inherited(fd),
        (Some(path), None) => Listening::Path { path: path.clone(), group: a.socket_group.clone() },
    };
    let tag = a.tag.clone().unwrap_or_else(|| TAG_DEFAULT.to_owned());
    let queues = match a.num_request_queues {
        Some(n) if n == 0 || n > REQUEST_QUEUES_MAX => return Err(ConfigError::Queues(n)),
        Some(n) => n,
        None => cpus.clamp(1, usize::from(REQUEST_QUEUES_MAX)) as u16,
    };
    let cache = match a.cache {
        Cache::Auto => CachePolicy::Auto,
        Cache::Always => CachePolicy::Always,
        Cache::Never => CachePolicy::Never,
        Cache::Metadata => CachePolicy::Metadata,
    };
    if a.writeback && matches!(a.cache, Cache::Never | Cache::Metadata) {
        // virtiofsd starts with these, so we do.
        tracing::warn!(
            "--writeback has little to keep: --cache {} has the guest bypass its cache",
            if a.cache == Cache::Never { "never" } else { "metadata" }
        );
    }
    if a.allow_mmap && !cache.bypasses_cache() {
        tracing::warn!("--allow-mmap has no effect: files can be mapped anyway unless --cache is never or metadata");
    }
    let by_policy = Timeouts::of(cache);
    let sandbox = match a.sandbox {
        Some(Sandbox::Namespace) => Mode::Namespace,
        Some(Sandbox::Chroot) => Mode::Chroot,
        Some(Sandbox::None) => Mode::None,
        None if is_root => Mode::Namespace,
        None => Mode::None,
    };
    Ok(Checked {
        listening,
        config_space: ConfigSpace::new(&tag, queues)?,
        tag,
        sandbox,
        share: Options {
            shared_dir,
            cache,
            timeouts: Timeouts {
                entry: a.entry_timeout.unwrap_or(by_policy.entry),
                attr: a.attr_timeout.unwrap_or(by_policy.attr),
                negative: a.negative_timeout.unwrap_or(by_policy.negative),
            },
            allow_mmap: a.allow_mmap,
            announce_submounts: true,
            host_locks: true,
            readonly: a.readonly,
            allow_direct_io: a.allow_direct_io,
            writeback: a.writeback,
            xattr: a.xattr,
            file_handles: match a.inode_file_handles {
                InodeFileHandles::Never => FileHandles::Never,
                InodeFileHandles::Prefer => FileHandles::Prefer,
                InodeFileHandles::Mandatory => FileHandles::Mandatory,
            },
            descriptors: Descriptors::of(0),
        },
        open_files: a.rlimit_nofile,
        keep_listening: a.keep_listening,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::time::Duration;

    fn parsed(line: &str) -> Result<Checked, ConfigError> {
        let words = std::iter::once("gatherfsd").chain(line.split_whitespace());
        check(&Arguments::try_parse_from(words).unwrap(), true, 4)
    }

    #[test]
    fn timeouts_follow_the_cache_policy_unless_they_are_given() {
        let timeouts = |options: &str| {
            let t = parsed(&format!("--shared-dir /d --fd 5 {options}")).unwrap().share.timeouts;
            (t.entry.as_secs(), t.attr.as_secs(), t.negative.as_secs())
        };
        let day = 86_400;
        assert_eq!(timeouts("--cache auto"), (1, 1, 0));
        assert_eq!(timeouts("--cache never"), (0, 0, 0));
        assert_eq!(timeouts("--cache always"), (day, day, day));
        assert_eq!(timeouts("--cache metadata"), (day, day, day));
        assert_eq!(timeouts("--cache always --negative-timeout 0"), (day, day, 0));
        assert_eq!(timeouts("--cache never --attr-timeout 7"), (0, 7, 0));
        for bad in ["-1", "soon", "nan", "inf", ""] {
            let option = format!("--entry-timeout={bad}");
            let line = ["gatherfsd", "--shared-dir", "/d", "--fd", "5", &option];
            let error = Arguments::try_parse_from(line).unwrap_err().to_string();
            assert!(error.contains("--entry-timeout"), "{error}");
        }
    }

    #[test]
    fn defaults_are_virtiofsds() {
        let c = parsed("--shared-dir /srv --socket-path /run/s").unwrap();
        assert_eq!(c.sandbox, Mode::Namespace);
        assert_eq!(c.share.cache, CachePolicy::Auto);
        assert!(!c.share.readonly && !c.share.xattr && !c.share.writeback && !c.share.allow_direct_io && !c.keep_listening);
        assert_eq!(c.config_space.read(36, 1), [4]);
        assert_eq!(c.config_space.read(0, 8), *b"gatherfs");
    }

    #[test]
    fn each_contradiction_ends_with_what_to_write_instead() {
        let cases = [
            ("--socket-path /s", ConfigError::NoSharedDir, "--shared-dir DIR"),
            ("--shared-dir /d", ConfigError::NoSocket, "--socket-path PATH"),
            ("--shared-dir /d --socket-path /s --fd 5", ConfigError::TwoSockets, "give one"),
            ("--shared-dir /d --fd 5 --socket-group kvm", ConfigError::GroupOfInherited, "--socket-path"),
            ("--shared-dir /d --fd 1", ConfigError::BadFd(1), "3 or higher"),
            ("--shared-dir /d --fd 5 --num-request-queues 65", ConfigError::Queues(65), "1 to 64"),
        ];
        for (line, error, advice) in cases {
            let got = parsed(line).unwrap_err();
            assert_eq!(got, error, "{line}");
            assert!(got.to_string().contains(advice), "{got}");
        }
        assert!(matches!(parsed("--shared-dir /d --fd 5 --tag 0123456789012345678901234567890123456"), Err(ConfigError::Tag(_))));
    }

    #[test]
    fn every_option_takes_effect() {
        let line = "--shared-dir /d --fd 5 --cache metadata --readonly --allow-direct-io --xattr --sandbox chroot --rlimit-nofile 99 --keep-listening --tag t --num-request-queues 3";
        let c = parsed(line).unwrap();
        assert_eq!((c.sandbox, c.share.cache, c.open_files), (Mode::Chroot, CachePolicy::Metadata, Some(99)));
        assert!(c.share.readonly && c.share.allow_direct_io && c.share.xattr && c.keep_listening);
        assert_eq!((c.tag.as_str(), c.config_space.read(36, 1)), ("t", vec![3]));
        let t = parsed("--shared-dir /d --fd 5 --entry-timeout 0.25 --attr-timeout 3 --negative-timeout 1e1 --allow-mmap").unwrap().share;
        let ms = Duration::from_millis;
        assert_eq!(t.timeouts, Timeouts { entry: ms(250), attr: ms(3000), negative: ms(10_000) });
        assert!(t.allow_mmap);
        assert!(parsed("--shared-dir /d --fd 5 --writeback").unwrap().share.writeback);
        for (word, how) in [("never", FileHandles::Never), ("prefer", FileHandles::Prefer), ("mandatory", FileHandles::Mandatory)] {
            let line = format!("--shared-dir /d --fd 5 --inode-file-handles {word}");
            assert_eq!(parsed(&line).unwrap().share.file_handles, how);
        }
    }
}
