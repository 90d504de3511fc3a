//! RLIMIT_NOFILE (man getrlimit(2)).

use caps::Capability;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sys::identity;

/// Descriptors that are asked for when nobody says how many, as virtiofsd does.
const OPEN_FILES_DEFAULT: u64 = 1_000_000;

/// What the daemon has open for itself, its queues and one guest that has a few files open.
const OPEN_FILES_LEAST: u64 = 64;

/// Where the kernel says what no limit may exceed.
const NR_OPEN: &str = "/proc/sys/fs/nr_open";

/// The limit that was asked for cannot be had, or is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// It cannot be had.
    #[error(
        "cannot raise the limit of open files to {wanted}: it is {allowed} here; give --rlimit-nofile {allowed} or less, or raise {bound}"
    )]
    TooHigh {
        /// What was asked for.
        wanted: u64,
        /// What can be had.
        allowed: u64,
        /// The setting that bounds it.
        bound: &'static str,
    },
    /// No guest could be served.
    #[error(
        "a limit of {0} open files is too low to serve a guest; give --rlimit-nofile {OPEN_FILES_LEAST} or more, \
         and raise the hard limit where it is lower"
    )]
    TooLow(u64),
}

/// What bounds the limit.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// The hard limit, which only CAP_SYS_RESOURCE raises.
    hard: u64,
    /// fs.nr_open, which nobody exceeds. A hard limit from before it was lowered may.
    most: u64,
}

impl Bounds {
    /// Soft limit `n`, with the hard limit only raised as far as `n` takes it.
    fn limit(self, n: u64) -> Rlimit {
        Rlimit { current: Some(n), maximum: Some(n.max(self.hard.min(self.most))) }
    }

    fn set(self, n: u64) -> bool {
        setrlimit(Resource::Nofile, self.limit(n)).is_ok()
    }

    /// Why `wanted` could not be set.
    fn refusal(self, wanted: u64, may_raise: bool) -> LimitError {
        if may_raise && wanted > self.most {
            LimitError::TooHigh { wanted, allowed: self.most, bound: "the sysctl fs.nr_open" }
        } else {
            LimitError::TooHigh { wanted, allowed: self.hard.min(self.most), bound: "the hard limit" }
        }
    }
}

/// Sets the number of descriptors: what is `wanted`, 0 for no change, or by default as many as are allowed
/// up to a million. Tells what it came to.
pub fn raise_open_files(wanted: Option<u64>) -> Result<u64, LimitError> {
    let now = getrlimit(Resource::Nofile);
    let (soft, hard) = (now.current.unwrap_or(u64::MAX), now.maximum.unwrap_or(u64::MAX));
    let most = std::fs::read_to_string(NR_OPEN).ok().and_then(|s| s.trim().parse().ok());
    let bounds = Bounds { hard, most: most.unwrap_or(hard) };
    let n = match wanted {
        Some(0) => soft,
        Some(n) if n < OPEN_FILES_LEAST || bounds.set(n) => n,
        Some(n) => return Err(bounds.refusal(n, identity::has_capability(Capability::CAP_SYS_RESOURCE))),
        None => {
            let by_default = OPEN_FILES_DEFAULT.min(bounds.most);
            let candidates = [by_default, hard.min(by_default)];
            candidates.into_iter().find(|n| *n > soft && bounds.set(*n)).unwrap_or(soft)
        }
    };
    if n < OPEN_FILES_LEAST { Err(LimitError::TooLow(n)) } else { Ok(n) }
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
