//! A moment that two processes of one host mean the same by: microseconds of CLOCK_MONOTONIC.

use std::time::Duration;

use crate::sys::clock::monotonic_us;

/// When it is too late for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(u64);

impl Deadline {
    /// Bytes of one in a message.
    pub const LEN: usize = size_of::<u64>();

    /// In `time` from now.
    pub fn after(time: Duration) -> Deadline {
        Deadline(monotonic_us().saturating_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Whether it is too late.
    pub fn has_passed(self) -> bool {
        monotonic_us() >= self.0
    }

    /// For a message.
    pub fn to_bytes(self) -> [u8; Deadline::LEN] {
        self.0.to_le_bytes()
    }

    /// Of a message.
    pub fn from_bytes(bytes: [u8; Deadline::LEN]) -> Deadline {
        Deadline(u64::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_when_its_time_is_over_wherever_it_is_sent() {
        assert!(Deadline::after(Duration::ZERO).has_passed());
        assert!(!Deadline::after(Duration::MAX).has_passed());
        let sent = Deadline::after(Duration::from_secs(3600));
        assert!(Deadline::from_bytes(sent.to_bytes()) == sent && !sent.has_passed());
    }
}
