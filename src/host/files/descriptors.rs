//! How RLIMIT_NOFILE is divided between the guest's objects and the daemon.

/// Number of descriptors for the guest's objects, and how many of them may be held without need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    /// Open files, inodes that are kept as descriptors, locks and recently used inodes together; ENFILE beyond, for locks
    /// ENOLCK.
    pub all: usize,
    /// Recently used inodes; beyond this the least recently used are closed.
    pub recent: usize,
}

/// Descriptors of the daemon itself: the listening socket, each queue's events, guest memory, both of the keeper and of the worker, and
/// what a request opens temporarily. 65 queues with eight descriptors each and 509 memory regions with two fit in.
const OWN_MAX: u64 = 2048;
/// A daemon with two queues has about 35 open.
const OWN_MIN: u64 = 64;

impl Descriptors {
    /// Divides `open_files` (RLIMIT_NOFILE): an eighth, between `OWN_MIN` and `OWN_MAX` and at most half, is the daemon's.
    pub fn of(open_files: u64) -> Descriptors {
        let own = (open_files / 8).clamp(OWN_MIN, OWN_MAX).min(open_files / 2);
        let all = open_files.saturating_sub(own).clamp(16, 1 << 31);
        Descriptors { all: all as usize, recent: (open_files / 16).clamp(16, 65_536) as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_keeps_its_own_and_the_guest_has_the_rest() {
        let of = |open_files| Descriptors::of(open_files).all;
        assert_eq!((of(1_000_000), of(20_000), of(1024), of(64)), (997_952, 17_952, 896, 32));
        assert_eq!((of(0), of(40), of(256)), (16, 20, 192));
        assert_eq!(of(u64::MAX), 1 << 31);
    }
}
