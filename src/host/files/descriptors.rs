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

/// Descriptors of the daemon itself at most: the listening socket, guest memory, both of the keeper and of the worker, and what a
/// request opens temporarily. 509 memory regions with two fit in.
const OWN_MAX: u64 = 2048;
/// A daemon without queues has about 25 open.
const OWN_MIN: u64 = 48;
/// Those of a queue: eight of its worker's, and before the next one has closed what the dead one had, a ring of either.
const OWN_OF_QUEUE: u64 = 12;
/// Queues of a device at most, and those that VMMs usually use, with the one for FORGET.
const QUEUES_MAX: u16 = 65;
const QUEUES_USUAL: u16 = 9;
/// What is left for the guest, however few there are.
const GUEST_MIN: u64 = 16;

impl Descriptors {
    /// Divides `open_files` (RLIMIT_NOFILE): an eighth is the daemon's, or what it needs if that is more. `queues` is how many the device
    /// has; `None` where the VMM may use any number, which are then as many as a quarter has room for.
    pub fn of(open_files: u64, queues: Option<u16>) -> Descriptors {
        let needed = |queues: u16| OWN_MIN + OWN_OF_QUEUE * u64::from(queues);
        let needed = queues.map_or_else(|| needed(QUEUES_MAX).min(open_files / 4).max(needed(QUEUES_USUAL)), needed);
        let own = (open_files / 8).min(OWN_MAX).max(needed).min(open_files.saturating_sub(GUEST_MIN));
        let all = open_files.saturating_sub(own).clamp(GUEST_MIN, 1 << 31);
        Descriptors { all: all as usize, recent: (open_files / 16).clamp(16, 65_536) as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_keeps_its_own_and_the_guest_has_the_rest() {
        let of = |open_files, queues| Descriptors::of(open_files, Some(queues)).all;
        assert_eq!((of(1_000_000, 2), of(20_000, 2), of(1024, 2), of(64, 2)), (997_952, 17_952, 896, 16));
        assert_eq!((of(1024, 17), of(4096, 65)), (772, 3268), "more queues have more descriptors");
        assert_eq!((of(0, 2), of(40, 2), of(256, 2)), (16, 16, 184));
        assert_eq!(of(u64::MAX, 65), 1 << 31);
        let of = |open_files| Descriptors::of(open_files, None).all;
        assert_eq!((of(1_000_000), of(4096), of(1024), of(256), of(64)), (997_952, 3268, 768, 100, 16));
    }
}
