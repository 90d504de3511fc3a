//! Wishes that do not fit together, and what is the default where nothing was said.

use std::path::PathBuf;

use super::listen::Listening;
use super::{Arguments, Cache, InodeFileHandles, Sandbox, Seccomp};
use crate::device::{ConfigSpace, REQUEST_QUEUES_MAX, TagError};
use crate::host::{CachePolicy, Descriptors, FileHandles, Options};
use crate::sandbox::{self, Capabilities, CapabilityError, IdMapError, IdMaps, Mode, parse_id_map};

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
    /// chroot(2) is root's.
    #[error("--sandbox chroot needs root; run gatherfsd as root, or say --sandbox namespace")]
    ChrootOfUser,
    /// Maps without a user namespace.
    #[error("{0} goes with --sandbox namespace and a user who is not root: only then is there a user namespace; leave it out")]
    NoUserNamespace(&'static str),
    /// A map is malformed.
    #[error("{option}: {error}")]
    IdMap {
        /// The option.
        option: &'static str,
        /// What is wrong, where, and how it is written.
        error: IdMapError,
    },
    /// The changes of capabilities are malformed.
    #[error("--modcaps: {0}")]
    Capabilities(#[from] CapabilityError),
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
    pub sandbox: sandbox::Options,
    /// The share; `descriptors` is set when the limit of open files is known.
    pub share: Options,
    /// The limit of open files that was asked for.
    pub open_files: Option<u64>,
    /// Whether to wait for the next monitor.
    pub keep_listening: bool,
}

/// Checks `arguments`; `is_root` decides which sandboxes there are, `cpus` the default number of queues.
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
    Ok(Checked {
        listening,
        config_space: ConfigSpace::new(&tag, queues)?,
        tag,
        sandbox: sandbox_of(a, is_root)?,
        share: Options {
            shared_dir,
            cache,
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

fn sandbox_of(a: &Arguments, is_root: bool) -> Result<sandbox::Options, ConfigError> {
    let mode = match a.sandbox {
        Sandbox::Namespace => Mode::Namespace,
        Sandbox::Chroot if !is_root => return Err(ConfigError::ChrootOfUser),
        Sandbox::Chroot => Mode::Chroot,
        Sandbox::None => Mode::None,
    };
    let map = |option, words: &[String]| {
        if !words.is_empty() && (is_root || mode != Mode::Namespace) {
            return Err(ConfigError::NoUserNamespace(option));
        }
        parse_id_map(words).map_err(|error| ConfigError::IdMap { option, error })
    };
    Ok(sandbox::Options {
        mode,
        id_maps: IdMaps { uid: map("--uid-map", &a.uid_map)?, gid: map("--gid-map", &a.gid_map)? },
        capabilities: Capabilities::new(a.inode_file_handles != InodeFileHandles::Never, a.modcaps.as_deref())?,
        seccomp: match a.seccomp {
            Seccomp::Kill => sandbox::Seccomp::Kill,
            Seccomp::Log => sandbox::Seccomp::Log,
            Seccomp::Trap => sandbox::Seccomp::Trap,
            Seccomp::None => sandbox::Seccomp::None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parsed_by(is_root: bool, line: &str) -> Result<Checked, ConfigError> {
        let words = std::iter::once("gatherfsd").chain(line.split_whitespace());
        check(&Arguments::try_parse_from(words).unwrap(), is_root, 4)
    }

    fn parsed(line: &str) -> Result<Checked, ConfigError> {
        parsed_by(true, line)
    }

    #[test]
    fn the_sandbox_is_what_was_asked_for() {
        let mode_of = |is_root, more: &str| parsed_by(is_root, &format!("--shared-dir /d --fd 5 {more}")).map(|c| c.sandbox);
        assert_eq!(mode_of(false, "").unwrap().mode, Mode::Namespace);
        assert_eq!(mode_of(false, "--sandbox None").unwrap().mode, Mode::None, "in any case, as virtiofsd takes it");
        assert_eq!(mode_of(false, "").unwrap().seccomp, sandbox::Seccomp::Kill);
        assert_eq!(mode_of(false, "").unwrap().id_maps, IdMaps::default());
        for (word, action) in [
            ("kill", sandbox::Seccomp::Kill),
            ("log", sandbox::Seccomp::Log),
            ("trap", sandbox::Seccomp::Trap),
            ("none", sandbox::Seccomp::None),
        ] {
            assert_eq!(mode_of(true, &format!("--seccomp {word}")).unwrap().seccomp, action);
        }
        let mapped = mode_of(false, "--uid-map :0:1000:1: --uid-map :1:100000:9: --gid-map /0/5/1/").unwrap().id_maps;
        assert_eq!((mapped.uid.len(), mapped.uid[1].outside, mapped.gid[0].outside), (2, 100_000, 5));
        let modcaps = mode_of(true, "--modcaps -chown:+sys_admin").unwrap().capabilities;
        assert_eq!(modcaps, Capabilities::new(true, Some("-chown:+sys_admin")).unwrap());
        assert_eq!(mode_of(true, "--inode-file-handles never").unwrap().capabilities, Capabilities::new(false, None).unwrap());

        let refused = |is_root, more: &str| mode_of(is_root, more).unwrap_err().to_string();
        assert!(refused(false, "--sandbox chroot").contains("--sandbox namespace"));
        for (is_root, more) in [(true, "--uid-map :0:1:1:"), (false, "--sandbox none --uid-map :0:1:1:")] {
            assert!(refused(is_root, more).contains("--uid-map goes with --sandbox namespace"), "{}", refused(is_root, more));
        }
        assert!(refused(false, "--gid-map :0:1:").starts_with("--gid-map: range 1 (:0:1:) has 2 numbers instead of 3; write"));
        assert!(refused(true, "--modcaps=chown").starts_with("--modcaps: entry 1 (chown)"));
    }

    #[test]
    fn defaults_are_virtiofsds() {
        let c = parsed("--shared-dir /srv --socket-path /run/s").unwrap();
        assert_eq!((c.sandbox.mode, c.sandbox.seccomp), (Mode::Namespace, sandbox::Seccomp::Kill));
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
        assert_eq!((c.sandbox.mode, c.share.cache, c.open_files), (Mode::Chroot, CachePolicy::Metadata, Some(99)));
        assert!(c.share.readonly && c.share.allow_direct_io && c.share.xattr && c.keep_listening);
        assert_eq!((c.tag.as_str(), c.config_space.read(36, 1)), ("t", vec![3]));
        assert!(parsed("--shared-dir /d --fd 5 --writeback").unwrap().share.writeback);
        for (word, how) in [("never", FileHandles::Never), ("prefer", FileHandles::Prefer), ("mandatory", FileHandles::Mandatory)] {
            let line = format!("--shared-dir /d --fd 5 --inode-file-handles {word}");
            assert_eq!(parsed(&line).unwrap().share.file_handles, how);
        }
    }
}
