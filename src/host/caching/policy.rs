//! What the guest may keep, and for how long it may believe it: the cache policy, its timeouts and the
//! flags that tell the guest. Knows nothing of single files.

use std::time::Duration;

use crate::fuse::abi::{init_flags, open_flags};

const DAY: Duration = Duration::from_secs(86_400);

/// How long the guest may believe what it was told, and whether it caches data (virtiofsd's `--cache`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachePolicy {
    /// Names and attributes for a second; data until size or mtime change.
    Auto,
    /// Everything for a day: only the guest changes the share.
    Always,
    /// Nothing; reads and writes go to the host each time.
    Never,
    /// Names and attributes for a day, no data.
    Metadata,
}

/// For how long the guest may believe each kind of answer. Zero: it asks each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// That a name is the file that it was.
    pub entry: Duration,
    /// A file's attributes.
    pub attr: Duration,
    /// That there is no such name.
    pub negative: Duration,
}

impl Timeouts {
    /// The most that a watched share allows where nothing else was said: what was quiet for four times as long.
    pub const WATCHED_MAX: Timeouts =
        Timeouts { entry: Duration::from_secs(60), attr: Duration::from_secs(60), negative: Duration::from_secs(60) };

    /// What `policy` allows where nothing else was said.
    pub fn of(policy: CachePolicy) -> Timeouts {
        let (positive, negative) = match policy {
            CachePolicy::Auto => (Duration::from_secs(1), Duration::ZERO),
            CachePolicy::Always | CachePolicy::Metadata => (DAY, DAY),
            CachePolicy::Never => (Duration::ZERO, Duration::ZERO),
        };
        Timeouts { entry: positive, attr: positive, negative }
    }
}

impl CachePolicy {
    /// Whether files are read and written past the guest's cache.
    pub fn bypasses_cache(self) -> bool {
        matches!(self, CachePolicy::Never | CachePolicy::Metadata)
    }

    /// INIT flags of this policy. `allow_mmap` counts only where the guest's cache is bypassed; elsewhere
    /// a file can be mapped anyway.
    pub(in crate::host) fn init_flags(self, allow_mmap: bool) -> u64 {
        let mut flags = match self {
            // Nobody else changes the data: size or mtime that moved are the guest's own doing.
            CachePolicy::Always => init_flags::EXPLICIT_INVAL_DATA,
            _ => init_flags::AUTO_INVAL_DATA,
        };
        if allow_mmap && self.bypasses_cache() {
            flags |= init_flags::DIRECT_IO_ALLOW_MMAP;
        }
        flags
    }

    /// What the guest is told of an open file. `needs_flush`: somebody wants to know when a descriptor of
    /// it is closed.
    pub(in crate::host) fn file_flags(self, needs_flush: bool) -> u32 {
        let cached = match self {
            CachePolicy::Never | CachePolicy::Metadata => open_flags::DIRECT_IO | open_flags::PARALLEL_DIRECT_WRITES,
            CachePolicy::Always => open_flags::KEEP_CACHE,
            CachePolicy::Auto => 0,
        };
        cached | if needs_flush { 0 } else { open_flags::NOFLUSH }
    }

    /// What the guest is told of an open directory.
    pub(in crate::host) fn directory_flags(self) -> u32 {
        match self {
            CachePolicy::Always | CachePolicy::Metadata => open_flags::KEEP_CACHE | open_flags::CACHE_DIR,
            CachePolicy::Auto | CachePolicy::Never => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mmap_past_the_cache_is_agreed_only_where_the_cache_is_bypassed() {
        for policy in [CachePolicy::Auto, CachePolicy::Always, CachePolicy::Never, CachePolicy::Metadata] {
            let agreed = policy.init_flags(true) & init_flags::DIRECT_IO_ALLOW_MMAP != 0;
            assert_eq!(agreed, policy.bypasses_cache(), "{policy:?}");
            assert_eq!(policy.init_flags(false) & init_flags::DIRECT_IO_ALLOW_MMAP, 0, "{policy:?}");
        }
    }
}
