//! RLIMIT_NOFILE, RLIMIT_MEMLOCK and RLIMIT_FSIZE (man getrlimit(2)).

use caps::Capability;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys::identity;

/// The limit without --rlimit-nofile, as virtiofsd's.
const OPEN_FILES_DEFAULT: u64 = 1_000_000;

/// The lowest useful limit: the daemon's own descriptors, those of its queues, and a few open files of a guest.
const OPEN_FILES_MIN: u64 = 64;

/// The sysctl that no limit may exceed.
const NR_OPEN: &str = "/proc/sys/fs/nr_open";

/// The limit of open files cannot be set, or is too low.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The limit exceeds what this process may set.
    #[error(
        "cannot raise the limit of open files to {wanted}: it is {allowed} here; give --rlimit-nofile {allowed} or less, or raise {bound}"
    )]
    TooHigh {
        /// The limit that was requested.
        wanted: u64,
        /// The highest limit that can be set.
        allowed: u64,
        /// The setting that bounds it.
        bound: &'static str,
    },
    /// The limit is too low to serve a guest.
    #[error(
        "a limit of {0} open files is too low to serve a guest; give --rlimit-nofile {OPEN_FILES_MIN} or more, \
         and raise the hard limit where it is lower"
    )]
    TooLow(u64),
}

/// What bounds RLIMIT_NOFILE.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// The hard limit. Raising it needs CAP_SYS_RESOURCE.
    hard: u64,
    /// fs.nr_open. A hard limit that was set before the sysctl was lowered may be above it.
    most: u64,
}

impl Bounds {
    /// Soft limit `n`, with a hard limit that is raised to `n` where it is lower.
    fn limit(self, n: u64) -> Rlimit {
        Rlimit { current: Some(n), maximum: Some(n.max(self.hard.min(self.most))) }
    }

    fn set(self, n: u64) -> bool {
        setrlimit(Resource::Nofile, self.limit(n)).is_ok()
    }

    /// The error for `wanted`, which could not be set.
    fn refusal(self, wanted: u64, may_raise: bool) -> LimitError {
        if may_raise && wanted > self.most {
            LimitError::TooHigh { wanted, allowed: self.most, bound: "the sysctl fs.nr_open" }
        } else {
            LimitError::TooHigh { wanted, allowed: self.hard.min(self.most), bound: "the hard limit" }
        }
    }
}

/// Raises the soft limit of file sizes as far as the hard one: the records of the guest's files are a sparse memfd, which a lower limit
/// would not let grow. An error leaves the limit as it is.
pub fn raise_file_size() {
    let limit = getrlimit(Resource::Fsize);
    if limit.current != limit.maximum {
        let _ = setrlimit(Resource::Fsize, Rlimit { current: limit.maximum, ..limit });
    }
}

/// The limit of open files that is in force.
pub fn open_files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Sets the soft limit of open files to `wanted` and returns the limit in force. 0 keeps the present limit; `None` raises it as
/// far as allowed, up to a million. [`LimitError::TooHigh`] where `wanted` cannot be set, [`LimitError::TooLow`] where the limit
/// in force is below 64.
pub fn raise_open_files(wanted: Option<u64>) -> Result<u64, LimitError> {
    let now = getrlimit(Resource::Nofile);
    let (soft, hard) = (now.current.unwrap_or(u64::MAX), now.maximum.unwrap_or(u64::MAX));
    let most = std::fs::read_to_string(NR_OPEN).ok().and_then(|s| s.trim().parse().ok());
    let bounds = Bounds { hard, most: most.unwrap_or(hard) };
    let n = match wanted {
        Some(0) => soft,
        Some(n) if n < OPEN_FILES_MIN || bounds.set(n) => n,
        Some(n) => return Err(bounds.refusal(n, identity::has_capability(Capability::CAP_SYS_RESOURCE))),
        None => {
            let by_default = OPEN_FILES_DEFAULT.min(bounds.most);
            let candidates = [by_default, hard.min(by_default)];
            candidates.into_iter().find(|n| *n > soft && bounds.set(*n)).unwrap_or(soft)
        }
    };
    if n < OPEN_FILES_MIN { Err(LimitError::TooLow(n)) } else { Ok(n) }
}

/// Raises the soft limit of locked memory as far as allowed.
pub fn raise_locked_memory() {
    let hard = getrlimit(Resource::Memlock).maximum;
    let unlimited = Rlimit { current: None, maximum: None };
    if setrlimit(Resource::Memlock, unlimited).is_err() {
        // Allowed always. What does not fit is said when memory is pinned.
        let _ = setrlimit(Resource::Memlock, Rlimit { current: hard, maximum: hard });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hard_limit_is_never_set_above_what_the_kernel_allows_nor_lowered_without_need() {
        let maximum = |hard, most, n| Bounds { hard, most }.limit(n).maximum;
        assert_eq!(maximum(20_000, 1 << 20, 777), Some(20_000));
        assert_eq!(maximum(20_000, 1 << 20, 30_000), Some(30_000));
        assert_eq!(maximum(20_000, 10_000, 777), Some(10_000), "a hard limit from before fs.nr_open was lowered");
    }

    #[test]
    fn a_refusal_names_what_bounds_the_limit() {
        let said = |hard, n, may_raise| Bounds { hard, most: 100_000 }.refusal(n, may_raise).to_string();
        assert!(said(20_000, 200_000, true).contains("--rlimit-nofile 100000 or less, or raise the sysctl fs.nr_open"));
        assert!(said(20_000, 200_000, false).contains("--rlimit-nofile 20000 or less, or raise the hard limit"));
        assert!(said(20_000, 50_000, true).contains("--rlimit-nofile 20000 or less, or raise the hard limit"));
    }
}
