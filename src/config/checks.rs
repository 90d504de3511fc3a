//! Options that exclude each other, and the defaults of those that were not given.

use std::path::PathBuf;
use std::time::Duration;

use super::arguments::Arguments;
use super::control_socket::{ControlPath, ControlPlace};
use super::listen::Listening;
use super::policy_summary::{PolicySummary, policy_summary};
use super::queue_cpus::{QueueCpusError, queue_cpus};
use super::values::{self, Cache, InodeFileHandles, IoEngine, Locks, MigrationMode, Negotiation, Sandbox, Seccomp};
use crate::device::{ConfigSpace, Options as DeviceOptions, QueueCpus, REQUEST_QUEUES_MAX, TagError};
use crate::host::{CachePolicy, FileHandles, IdMap, IdRuleError, KillPriv, Options, Rights, Support, Timeouts, TmpfilePolicy, Translation};
use crate::io::Which;
use crate::sandbox::{self, Capabilities, CapabilityError, IdMaps, Mode, parse_id_map};

/// The mount tag when none was given.
const TAG_DEFAULT: &str = "gatherfs";
/// Cloud Hypervisor connects again as soon as it sees that the connection ended, and tries each 0.1 s; its host may be under load.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Options that do not go together, and what to give instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No shared directory.
    #[error("no shared directory; give --shared-dir DIR")]
    NoSharedDir,
    /// No socket.
    #[error("no socket to listen on; give --socket-path PATH, or --fd FD for an inherited socket")]
    NoSocket,
    /// Two sockets.
    #[error("--socket-path and --fd exclude each other; give one of them")]
    TwoSockets,
    /// A group for an inherited socket.
    #[error("--socket-group needs --socket-path; the group of an inherited socket is set by its creator")]
    GroupOfInherited,
    /// A control socket without a keeper.
    #[error("--control-socket needs a keeper; leave out --no-keeper, or give --control-socket none")]
    ControlWithoutKeeper,
    /// A VMM that may connect again without a keeper.
    #[error("--reconnect-timeout needs a keeper; leave out --no-keeper, or give --reconnect-timeout 0")]
    ReconnectWithoutKeeper,
    /// Not a descriptor, or standard output or error.
    #[error("invalid value '{0}' for --fd: expected the number of an inherited socket, 0 or 3 and higher")]
    BadFd(i32),
    /// A service manager passed something other than one socket.
    #[error("LISTEN_FDS={0} is not one socket; leave one ListenStream= in the socket unit, or give --socket-path or --fd")]
    ListenFds(String),
    /// The tag is empty, too long or contains a NUL byte.
    #[error("--tag: {0}")]
    Tag(#[from] TagError),
    /// Rules of one option that contradict each other.
    #[error("{option}: {source}")]
    Ids {
        /// The option.
        option: &'static str,
        /// What is wrong.
        source: IdRuleError,
    },
    /// Ids in ACLs are not translated.
    #[error("--posix-acl excludes --translate-uid and --translate-gid: ids in ACLs are not translated; leave one of them out")]
    AclsWithTranslation,
    /// No or too many queues.
    #[error("invalid value '{0}' for --num-request-queues: expected 1 to {REQUEST_QUEUES_MAX}")]
    Queues(u16),
    /// Queues cannot be bound to CPUs as wanted.
    #[error("--queue-cpus: {0}")]
    QueueCpus(#[from] QueueCpusError),
    /// `--watch` with another cache policy.
    #[error("--watch needs --cache auto: the timeouts of the other policies are fixed; leave one of them out")]
    WatchPolicy,
    /// A limit for locks that the guest's kernel holds.
    #[error("--lock-wait needs --locks host: the guest's kernel does not limit waits for its own locks; leave it out")]
    LockWait,
    /// Guest memory is registered with rings that there are not.
    #[error("--pin-guest-memory needs --allow-direct-io, or --io-engine uring: nothing else is done by io_uring; leave it out")]
    PinsWithoutRings,
    /// A check that applies to paths only.
    #[error("{0} needs --migration-mode find-paths; leave it out")]
    MigrationCheck(&'static str),
    /// chroot(2) requires root.
    #[error("--sandbox chroot requires root; run gatherfsd as root, or use --sandbox namespace")]
    ChrootOfUser,
    /// Id maps without a user namespace.
    #[error("{0} needs --sandbox namespace and a user other than root: there is no user namespace otherwise; leave it out")]
    NoUserNamespace(&'static str),
    /// A map is malformed.
    #[error("{option}: {error}")]
    IdMap {
        /// The option.
        option: &'static str,
        /// The error, its position and the expected form.
        error: sandbox::IdRangeError,
    },
    /// `--modcaps` is malformed.
    #[error("--modcaps: {0}")]
    Capabilities(#[from] CapabilityError),
}

/// The options after the checks, by the room that they are for.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Where to listen.
    pub listening: Listening,
    /// Where the control socket is made.
    pub control: ControlPlace,
    /// The device's configuration space, if `--tag` or `--num-request-queues` was given: QEMU 7.1 to 8.0 may crash when one is
    /// offered.
    pub config_space: Option<ConfigSpace>,
    /// The mount tag, for the log.
    pub tag: String,
    /// Limits of queues, requests and threads.
    pub device: DeviceOptions,
    /// Queues of the device, with that for FORGET, where the number was given.
    pub queues: Option<u16>,
    /// CPUs of the threads that serve each request queue.
    pub queue_cpus: QueueCpus,
    /// The sandbox.
    pub sandbox: sandbox::Options,
    /// The share.
    pub share: Options,
    /// `--rlimit-nofile`, if given.
    pub open_files: Option<u64>,
    /// Whether to watch the share for changes.
    pub watch: bool,
    /// Whether to wait for the next VMM after one disconnects.
    pub keep_listening: bool,
    /// How long a VMM may take to connect again.
    pub reconnect_timeout: Duration,
    /// Whether a keeper owns the VMM's connection, and another process serves.
    pub has_keeper: bool,
    /// How file data is read and written.
    pub io: IoOptions,
    /// For the log at start.
    pub summary: PolicySummary,
}

/// Rings to make at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoOptions {
    /// One for each request queue; 0 where only system calls are used.
    pub rings: u16,
    /// What goes to them.
    pub which: Which,
    /// Whether guest memory is registered with them.
    pub pins_memory: bool,
}

impl IoOptions {
    /// Whether the daemon cannot do without rings.
    pub fn is_required(self) -> bool {
        self.which == Which::All
    }
}

/// Checks `arguments`. `is_root` decides which sandboxes are possible, `cpus` is the default number of request queues.
///
/// # Errors
/// An option is missing, has a value out of range, or excludes another one.
pub fn check(arguments: &Arguments, is_root: bool, cpus: usize) -> Result<Checked, ConfigError> {
    let a = arguments;
    let shared_dir: PathBuf = a.shared_dir.clone().ok_or(ConfigError::NoSharedDir)?;
    let listening = match (a.socket_path.as_ref().or(a.socket.as_ref()), a.fd) {
        (Some(_), Some(_)) => return Err(ConfigError::TwoSockets),
        (None, None) => return Err(ConfigError::NoSocket),
        (None, Some(_)) if a.socket_group.is_some() => return Err(ConfigError::GroupOfInherited),
        (None, Some(fd)) if fd < 0 || fd == 1 || fd == 2 => return Err(ConfigError::BadFd(fd)),
        (None, Some(fd)) => Listening::Inherited(fd),
        (Some(path), None) => Listening::Path { path: path.clone(), group: a.socket_group.clone() },
    };
    let tag = a.tag.clone().unwrap_or_else(|| TAG_DEFAULT.to_owned());
    let queues = match a.num_request_queues {
        Some(n) if n == 0 || n > REQUEST_QUEUES_MAX => return Err(ConfigError::Queues(n)),
        Some(n) => n,
        None => u16::try_from(cpus).unwrap_or(REQUEST_QUEUES_MAX).clamp(1, REQUEST_QUEUES_MAX),
    };
    for (is_set, option) in
        [(a.migration_verify_handles, "--migration-verify-handles"), (a.migration_confirm_paths, "--migration-confirm-paths")]
    {
        if is_set && a.migration_mode == Some(MigrationMode::FileHandles) {
            return Err(ConfigError::MigrationCheck(option));
        }
    }
    let cache = match a.cache {
        Cache::Auto => CachePolicy::Auto,
        Cache::Always => CachePolicy::Always,
        Cache::Never => CachePolicy::Never,
        Cache::Metadata => CachePolicy::Metadata,
    };
    if a.writeback && matches!(a.cache, Cache::Never | Cache::Metadata) {
        // A warning only, since virtiofsd accepts the combination.
        tracing::warn!(
            "--writeback has little effect: with --cache {} the guest bypasses its page cache",
            if a.cache == Cache::Never { "never" } else { "metadata" }
        );
    }
    if a.allow_mmap && !cache.bypasses_cache() {
        tracing::warn!("--allow-mmap has no effect: mmap is always allowed unless --cache is never or metadata");
    }
    if a.watch && cache != CachePolicy::Auto {
        return Err(ConfigError::WatchPolicy);
    }
    if a.lock_wait.is_some() && a.locks != Locks::Host {
        return Err(ConfigError::LockWait);
    }
    let by_policy = if a.watch { Timeouts::WATCHED_MAX } else { Timeouts::of(cache) };
    let translation = translation(a)?;
    let rights = Rights {
        posix_acl: wanted(a.posix_acl),
        security_label: wanted(a.security_label),
        killpriv: match (a.killpriv_v2, a.no_killpriv_v2) {
            (true, _) => KillPriv::Host,
            (_, true) => KillPriv::Guest,
            _ => KillPriv::Auto,
        },
        xattr_map: a.xattrmap.clone(),
    };
    let needs_xattr = rights.posix_acl != Support::Never || rights.security_label != Support::Never || rights.xattr_map.is_some();
    let config_space = ConfigSpace::new(&tag, queues)?;
    let is_asked_for = a.tag.is_some() || a.num_request_queues.is_some();
    Ok(Checked {
        control: control(a, &listening)?,
        listening,
        config_space: is_asked_for.then_some(config_space),
        tag,
        device: device_options(a, cpus),
        queues: a.num_request_queues.map(|queues| queues + 1),
        queue_cpus: queue_cpus(a.queue_cpus.as_ref(), a.num_request_queues)?,
        sandbox: sandbox_of(a, is_root)?,
        share: Options {
            shared_dir,
            cache,
            timeouts: Timeouts {
                entry: a.entry_timeout.unwrap_or(by_policy.entry),
                attr: a.attr_timeout.unwrap_or(by_policy.attr),
                negative: a.negative_timeout.unwrap_or(by_policy.negative),
            },
            allow_mmap: a.allow_mmap,
            readonly: a.readonly,
            // With --cache never the guest cannot use the attributes.
            readdirplus: !a.no_readdirplus && a.cache != Cache::Never,
            announce_submounts: a.announce_submounts && !a.no_announce_submounts,
            preserve_noatime: a.preserve_noatime,
            birth_times: a.birth_times,
            allow_direct_io: a.allow_direct_io,
            writeback: a.writeback,
            xattr: a.xattr || needs_xattr,
            allow_project_ids: a.allow_project_ids,
            translation,
            rights,
            host_locks: a.locks == Locks::Host,
            lock_wait: a.lock_wait,
            tmpfile: match a.tmpfile {
                values::Tmpfile::Auto => TmpfilePolicy::Auto,
                values::Tmpfile::Always => TmpfilePolicy::Always,
                values::Tmpfile::Never => TmpfilePolicy::Never,
            },
            file_handles: match a.inode_file_handles {
                InodeFileHandles::Never => FileHandles::Never,
                InodeFileHandles::Prefer | InodeFileHandles::Fallback => FileHandles::Prefer,
                InodeFileHandles::Mandatory => FileHandles::Mandatory,
            },
        },
        open_files: a.rlimit_nofile,
        watch: a.watch,
        keep_listening: a.keep_listening,
        reconnect_timeout: reconnect_timeout(a)?,
        has_keeper: !a.no_keeper,
        io: io_options(a, queues)?,
        summary: policy_summary(a),
    })
}

fn control(a: &Arguments, listening: &Listening) -> Result<ControlPlace, ConfigError> {
    Ok(match (&a.control_socket, listening) {
        (Some(ControlPath::At(_)), _) if a.no_keeper => return Err(ConfigError::ControlWithoutKeeper),
        (Some(ControlPath::At(path)), _) => ControlPlace::At(path.clone()),
        (None, Listening::Path { path, .. }) if !a.no_keeper => ControlPlace::Beside(crate::outer::path_beside(path)),
        _ => ControlPlace::None,
    })
}

fn reconnect_timeout(a: &Arguments) -> Result<Duration, ConfigError> {
    match a.reconnect_timeout {
        Some(time) if a.no_keeper && !time.is_zero() => Err(ConfigError::ReconnectWithoutKeeper),
        time => Ok(time.unwrap_or(RECONNECT_TIMEOUT)),
    }
}

fn io_options(a: &Arguments, queues: u16) -> Result<IoOptions, ConfigError> {
    let (rings, which) = match a.io_engine {
        IoEngine::Uring => (queues, Which::All),
        IoEngine::Auto if a.allow_direct_io => (queues, Which::Overlapping),
        IoEngine::Auto | IoEngine::Sync => (0, Which::Overlapping),
    };
    if a.pin_guest_memory && rings == 0 {
        return Err(ConfigError::PinsWithoutRings);
    }
    Ok(IoOptions { rings, which, pins_memory: a.pin_guest_memory })
}

fn wanted(negotiation: Negotiation) -> Support {
    match negotiation {
        Negotiation::Never => Support::Never,
        Negotiation::Auto => Support::Auto,
        Negotiation::Always => Support::Always,
    }
}

fn translation(a: &Arguments) -> Result<Translation, ConfigError> {
    let map = |option, rules: &[_]| IdMap::new(rules).map_err(|source| ConfigError::Ids { option, source });
    let users = map("--translate-uid", &a.translate_uid)?;
    let groups = map("--translate-gid", &a.translate_gid)?;
    let any = !a.translate_uid.is_empty() || !a.translate_gid.is_empty();
    if any && a.posix_acl != Negotiation::Never {
        return Err(ConfigError::AclsWithTranslation);
    }
    Ok(Translation { users, groups })
}

fn device_options(a: &Arguments, cpus: usize) -> DeviceOptions {
    let default = DeviceOptions::default();
    let threads_per_queue = match a.thread_pool_size {
        // Kata Containers passes 1. With one thread, a slow request would block its queue.
        0 | 1 => default.threads_per_queue,
        n => u16::try_from(n).unwrap_or(u16::MAX),
    };
    DeviceOptions {
        max_pages: a.max_pages.unwrap_or(default.max_pages),
        threads_per_queue,
        stop_timeout: a.stop_timeout.unwrap_or(default.stop_timeout),
        poll: a.poll_us,
        cpus: u16::try_from(cpus).unwrap_or(u16::MAX),
        ..default
    }
}

fn sandbox_of(a: &Arguments, is_root: bool) -> Result<sandbox::Options, ConfigError> {
    let mode = match a.sandbox {
        Sandbox::Namespace => Mode::Namespace,
        Sandbox::Chroot if !is_root => return Err(ConfigError::ChrootOfUser),
        Sandbox::Chroot => Mode::Chroot,
        Sandbox::None => Mode::None,
    };
    let map = |option, ranges: &[String]| {
        if !ranges.is_empty() && (is_root || mode != Mode::Namespace) {
            return Err(ConfigError::NoUserNamespace(option));
        }
        parse_id_map(ranges).map_err(|error| ConfigError::IdMap { option, error })
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
        has_outer: !a.no_keeper,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command_line::parse;

    fn parsed_by(is_root: bool, line: &str) -> Result<Checked, ConfigError> {
        let arguments = std::iter::once("gatherfsd").chain(line.split_whitespace()).map(Into::into);
        check(&parse(arguments).unwrap(), is_root, 4)
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
            assert!(refused(is_root, more).contains("--uid-map needs --sandbox namespace"), "{}", refused(is_root, more));
        }
        assert!(refused(false, "--gid-map :0:1:").starts_with("--gid-map: range 1 (:0:1:) has 2 numbers instead of 3; expected"));
        assert!(refused(true, "--modcaps=chown").starts_with("--modcaps: entry 1 (chown)"));
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
            let error = parse(line.map(Into::into)).unwrap_err().to_string();
            assert!(error.contains("--entry-timeout"), "{error}");
        }
    }

    #[test]
    fn defaults_are_virtiofsds() {
        let c = parsed("--shared-dir /srv --socket-path /run/s").unwrap();
        assert_eq!((c.sandbox.mode, c.sandbox.seccomp), (Mode::Namespace, sandbox::Seccomp::Kill));
        assert_eq!(c.share.cache, CachePolicy::Auto);
        assert!(!c.share.readonly && !c.share.xattr && !c.share.writeback && !c.share.allow_direct_io && !c.keep_listening);
        assert!(c.has_keeper);
        assert!(c.share.readdirplus && c.share.announce_submounts && !c.share.preserve_noatime && !c.share.birth_times);
        assert!(!c.share.host_locks, "virtiofsd has locks in the guest only");
        assert!(c.config_space.is_none());
        assert_eq!(c.device, DeviceOptions { cpus: 4, ..DeviceOptions::default() });
    }

    #[test]
    fn how_long_a_vmm_may_take_to_connect_again_needs_a_keeper() {
        let time = |options: &str| parsed(&format!("--shared-dir /d --fd 5 {options}")).map(|checked| checked.reconnect_timeout);
        assert_eq!(time(""), Ok(Duration::from_secs(10)));
        assert_eq!(time("--reconnect-timeout 0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(time("--reconnect-timeout 86400"), Ok(Duration::from_secs(86400)));
        assert_eq!(time("--reconnect-timeout 0 --no-keeper"), Ok(Duration::ZERO));
        assert_eq!(time("--reconnect-timeout 1 --no-keeper"), Err(ConfigError::ReconnectWithoutKeeper));
    }

    #[test]
    fn a_tag_or_a_number_of_queues_makes_a_configuration_space() {
        let space = |line: &str| parsed(&format!("--shared-dir /d --fd 5 {line}")).unwrap().config_space.unwrap();
        assert_eq!((space("--tag t").read(0, 2), space("--tag t").read(36, 1)), (b"t\0".to_vec(), vec![4]));
        let numbered = space("--num-request-queues 3");
        assert_eq!((numbered.read(36, 1), numbered.read(0, 8)), (vec![3], b"gatherfs".to_vec()));
    }

    #[test]
    fn each_contradiction_ends_with_what_to_write_instead() {
        let cases = [
            ("--socket-path /s", ConfigError::NoSharedDir, "--shared-dir DIR"),
            ("--shared-dir /d", ConfigError::NoSocket, "--socket-path PATH"),
            ("--shared-dir /d --socket-path /s --fd 5", ConfigError::TwoSockets, "give one"),
            ("--shared-dir /d --fd 5 --socket-group kvm", ConfigError::GroupOfInherited, "--socket-path"),
            ("--shared-dir /d --fd 1", ConfigError::BadFd(1), "0 or 3 and higher"),
            ("--shared-dir /d --fd 5 --num-request-queues 65", ConfigError::Queues(65), "1 to 64"),
            ("--shared-dir /d --fd 5 --socket /s", ConfigError::TwoSockets, "give one"),
            ("--shared-dir /d --fd 5 --lock-wait 5", ConfigError::LockWait, "--locks host"),
            ("--shared-dir /d --fd 5 --lock-wait 5 --locks guest", ConfigError::LockWait, "leave it out"),
            (
                "--shared-dir /d --fd 5 --migration-mode file-handles --migration-confirm-paths",
                ConfigError::MigrationCheck("--migration-confirm-paths"),
                "leave it out",
            ),
            (
                "--shared-dir /d --fd 5 --migration-mode=file-handles --migration-verify-handles",
                ConfigError::MigrationCheck("--migration-verify-handles"),
                "find-paths",
            ),
        ];
        for (line, error, advice) in cases {
            let got = parsed(line).unwrap_err();
            assert_eq!(got, error, "{line}");
            assert!(got.to_string().contains(advice), "{got}");
        }
        assert!(matches!(parsed("--shared-dir /d --fd 5 --tag 0123456789012345678901234567890123456"), Err(ConfigError::Tag(_))));
    }

    #[test]
    fn options_about_rights_imply_what_they_need_and_take_virtiofsds_values() {
        let base = "--shared-dir /d --fd 5";
        let share = |more: &str| parsed(&format!("{base} {more}")).unwrap().share;
        for (word, mode) in [
            ("", Support::Never),
            ("=never", Support::Never),
            ("=auto", Support::Auto),
            ("=always", Support::Always),
            ("!", Support::Always),
        ] {
            for option in ["--posix-acl", "--security-label"] {
                let line = if word.is_empty() { String::new() } else { format!("{option}{}", word.trim_end_matches('!')) };
                let share = share(&line);
                let got = if option == "--posix-acl" { share.rights.posix_acl } else { share.rights.security_label };
                assert_eq!((got, share.xattr), (mode, mode != Support::Never), "{line}");
            }
        }
        let mapped = share("--xattrmap :map::user.virtiofs.:");
        assert!(mapped.xattr && mapped.rights.xattr_map.is_some());
        for (line, who) in [
            ("", KillPriv::Auto),
            ("--killpriv-v2", KillPriv::Host),
            ("--no-killpriv-v2 --killpriv-v2", KillPriv::Host),
            ("--no-killpriv-v2", KillPriv::Guest),
            ("--killpriv-v2 --no-killpriv-v2", KillPriv::Guest),
        ] {
            assert_eq!(share(line).rights.killpriv, who, "{line}");
        }
        let ids = share("--translate-uid map:0:1000:1 --translate-uid squash-host:0:65534:1 --translate-gid forbid-guest:5:1").translation;
        assert_ne!(ids.users, IdMap::default());
        assert_ne!(ids.groups, IdMap::default());
        assert_eq!(share("").translation, Translation::default());
    }

    #[test]
    fn id_rules_that_contradict_each_other_or_acls_are_refused_with_the_options_name() {
        let base = "--shared-dir /d --fd 5";
        let error = |more: &str| parsed(&format!("{base} {more}")).unwrap_err().to_string();
        let twice = error("--translate-gid guest:0:1:10 --translate-gid map:5:1:1");
        assert!(twice.starts_with("--translate-gid: rules \"guest:0:1:10\" and \"map:5:1:1\" overlap"), "{twice}");
        for option in ["--translate-uid", "--translate-gid"] {
            assert!(error(&format!("{option} map:0:1:1 --posix-acl=auto")).contains("leave one of them out"));
        }
    }

    #[test]
    fn every_option_takes_effect() {
        let line = "--shared-dir /d --fd 5 --cache metadata --readonly --allow-direct-io --xattr --sandbox chroot --no-keeper --rlimit-nofile 99 --keep-listening --tag t --num-request-queues 3";
        let c = parsed(line).unwrap();
        assert_eq!((c.sandbox.mode, c.share.cache, c.open_files), (Mode::Chroot, CachePolicy::Metadata, Some(99)));
        assert!(c.share.readonly && c.share.allow_direct_io && c.share.xattr && c.keep_listening && !c.has_keeper);
        assert_eq!((c.tag.as_str(), c.config_space.unwrap().read(36, 1)), ("t", vec![3]));
        let c = parsed("--shared-dir /d --socket /s --no-readdirplus --no-announce-submounts --preserve-noatime --birth-times").unwrap();
        assert_eq!(c.listening, Listening::Path { path: "/s".into(), group: None });
        assert!(!c.share.readdirplus && !c.share.announce_submounts && c.share.preserve_noatime && c.share.birth_times);
        assert!(!parsed("--shared-dir /d --fd 5 --cache never").unwrap().share.readdirplus);
        for (line, announced) in [
            ("--announce-submounts=false", false),
            ("--announce-submounts", true),
            ("--no-announce-submounts --announce-submounts", true),
            ("--announce-submounts --no-announce-submounts", false),
            ("--no-announce-submounts -o announce_submounts", true),
        ] {
            assert_eq!(parsed(&format!("--shared-dir /d --fd 5 {line}")).unwrap().share.announce_submounts, announced, "{line}");
        }
        let c = parsed("--shared-dir /d --fd 5 --thread-pool-size 3 --max-pages 256").unwrap();
        assert_eq!(c.device, DeviceOptions { max_pages: 256, threads_per_queue: 3, cpus: 4, ..DeviceOptions::default() });
        let t = parsed("--shared-dir /d --fd 5 --entry-timeout 0.25 --attr-timeout 3 --negative-timeout 1e1 --allow-mmap").unwrap().share;
        let ms = Duration::from_millis;
        assert_eq!(t.timeouts, Timeouts { entry: ms(250), attr: ms(3000), negative: ms(10_000) });
        assert!(t.allow_mmap);
        assert!(parsed("--shared-dir /d --fd 5 --writeback").unwrap().share.writeback);
        for (word, on_host) in [("host", true), ("guest", false)] {
            assert_eq!(parsed(&format!("--shared-dir /d --fd 5 --locks {word}")).unwrap().share.host_locks, on_host);
        }
        let lock_wait = parsed("--shared-dir /d --fd 5 --locks host --lock-wait 0.5").unwrap().share.lock_wait;
        assert_eq!(lock_wait, Some(Duration::from_millis(500)));
        let project_ids = |more| parsed(&format!("--shared-dir /d --fd 5 {more}")).unwrap().share.allow_project_ids;
        assert!(project_ids("--allow-project-ids") && !project_ids("") && !project_ids("--allow-project-ids=false"));
        let kinds = [("never", FileHandles::Never), ("prefer", FileHandles::Prefer), ("mandatory", FileHandles::Mandatory)];
        for (word, how) in kinds.into_iter().chain([("fallback", FileHandles::Prefer)]) {
            let line = format!("--shared-dir /d --fd 5 --inode-file-handles {word}");
            assert_eq!(parsed(&line).unwrap().share.file_handles, how);
        }
    }
}
