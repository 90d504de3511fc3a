//! What the guest may keep, and for how long it may believe it: the cache policy, its timeouts and the
//! flags that tell the guest. Knows nothing of single files.

use std::time::Duration;

use crate::host::features::{Feature, Features};

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

    /// How the guest invalidates cached data, and whether it may map files past its cache. `allow_mmap` counts only where the
    /// guest's cache is bypassed; elsewhere a file can be mapped anyway.
    pub(in crate::host) fn features(self, allow_mmap: bool) -> Features {
        let invalidation = match self {
            // Only the guest changes the data: a change of size or mtime is its own.
            CachePolicy::Always => Feature::ExplicitInvalidation,
            _ => Feature::AutoInvalidation,
        };
        Features::default().with(invalidation).with_if(allow_mmap && self.bypasses_cache(), Feature::UncachedMmap)
    }

    /// How the guest may cache an open file that nothing is known of.
    pub(in crate::host) fn of_file(self) -> OpenCaching {
        OpenCaching { bypass: self.bypasses_cache(), keep: self == CachePolicy::Always, entries: false }
    }

    /// How the guest may cache an open directory that nothing is known of.
    pub(in crate::host) fn of_directory(self) -> OpenCaching {
        let is_kept = matches!(self, CachePolicy::Always | CachePolicy::Metadata);
        OpenCaching { bypass: false, keep: is_kept, entries: is_kept }
    }
}

/// How the guest may cache an open file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenCaching {
    /// Reads and writes bypass the guest's page cache.
    pub bypass: bool,
    /// What is cached since an earlier open stays valid.
    pub keep: bool,
    /// The entries of a directory may be cached.
    pub entries: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mmap_past_the_cache_is_agreed_only_where_the_cache_is_bypassed() {
        for policy in [CachePolicy::Auto, CachePolicy::Always, CachePolicy::Never, CachePolicy::Metadata] {
            assert_eq!(policy.features(true).has(Feature::UncachedMmap), policy.bypasses_cache(), "{policy:?}");
            assert!(!policy.features(false).has(Feature::UncachedMmap), "{policy:?}");
        }
    }
}
