//! The cache policy: what the guest may cache, and the timeouts of lookups and attributes. Does not know single files.

use std::time::Duration;

use crate::host::features::{Feature, Features};

const DAY: Duration = Duration::from_secs(86_400);

/// Cache policy (virtiofsd's `--cache`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CachePolicy {
    /// Lookups and attributes are cached for 1 s; file data is revalidated at open and when size or mtime change.
    Auto,
    /// Everything is cached for a day: only the guest changes the share.
    Always,
    /// Nothing is cached; reads and writes bypass the guest's page cache.
    Never,
    /// Lookups and attributes are cached for a day, file data is not.
    Metadata,
}

/// How long the guest may cache results. Zero: not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Entry timeout: which node a name leads to.
    pub entry: Duration,
    /// Attribute timeout.
    pub attr: Duration,
    /// Timeout of negative entries: that there is no such name.
    pub negative: Duration,
}

impl Timeouts {
    /// Defaults with `--watch`: upper limits, as timeout = quiet time / 4.
    pub const WATCHED_MAX: Timeouts =
        Timeouts { entry: Duration::from_secs(60), attr: Duration::from_secs(60), negative: Duration::from_secs(60) };

    /// Defaults of `policy`.
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

    /// How the guest may cache an open file, without regard to changes.
    pub(in crate::host) fn of_file(self) -> OpenCaching {
        OpenCaching { bypass: self.bypasses_cache(), keep: self == CachePolicy::Always, entries: false }
    }

    /// How the guest may cache an open directory, without regard to changes.
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
