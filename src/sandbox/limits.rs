//! RLIMIT_NOFILE (man getrlimit(2)).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are asked for when nobody says how many, as virtiofsd does.
const OPEN_FILES_DEFAULT: u64 = 1_000_000;

/// The limit that was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot raise the limit of open files to {wanted}: it is {allowed} here; give --rlimit-nofile {allowed} or less, or raise the hard limit"
)]
pub struct LimitError {
    wanted: u64,
    allowed: u64,
}

/// Sets the number of descriptors: what is `wanted`, 0 for no change, or by default as many as are allowed
/// up to a million. Tells what it came to.
pub fn raise_open_files(wanted: Option<u64>) -> Result<u64, LimitError> {
    let now = getrlimit(Resource::Nofile);
    let hard = now.maximum.unwrap_or(u64::MAX);
    let soft = now.current.unwrap_or(u64::MAX);
    let set = |n: u64| setrlimit(Resource::Nofile, Rlimit { current: Some(n), maximum: Some(n.max(hard)) }).is_ok();
    match wanted {
        Some(0) => Ok(soft),
        Some(n) if set(n) => Ok(n),
        Some(n) => Err(LimitError { wanted: n, allowed: hard }),
        None => {
            let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|s| s.trim().parse().ok()).unwrap_or(hard);
            let n = OPEN_FILES_DEFAULT.min(most);
            if n <= soft {
                return Ok(soft);
            }
            if set(n) {
                return Ok(n);
            }
            Ok(if set(hard.min(n)) { hard.min(n) } else { soft })
        }
    }
}
