//! Features of a session as INIT flags.

use crate::fuse::Negotiated;
use crate::fuse::abi::init_flags as f;
use crate::host::{Feature, Features};

/// Flags that say how requests are encoded and sent; offered to every guest. CACHE_SYMLINKS is among them as the target of a
/// symbolic link never changes: another target is another inode.
const ALWAYS: u64 =
    f::ASYNC_READ | f::BIG_WRITES | f::ASYNC_DIO | f::PARALLEL_DIROPS | f::MAX_PAGES | f::HAS_IOCTL_DIR | f::INIT_EXT | f::CACHE_SYMLINKS;

/// Each feature and its flags, all of which it takes.
const FLAGS: [(Feature, u64); 18] = [
    (Feature::Readdirplus, f::DO_READDIRPLUS | f::READDIRPLUS_AUTO),
    (Feature::AtomicTruncate, f::ATOMIC_O_TRUNC),
    (Feature::Submounts, f::SUBMOUNTS),
    (Feature::AutoInvalidation, f::AUTO_INVAL_DATA),
    (Feature::ExplicitInvalidation, f::EXPLICIT_INVAL_DATA),
    (Feature::UncachedMmap, f::DIRECT_IO_ALLOW_MMAP),
    (Feature::NoOpen, f::NO_OPEN_SUPPORT),
    (Feature::NoOpendir, f::NO_OPENDIR_SUPPORT),
    (Feature::Export, f::EXPORT_SUPPORT),
    (Feature::Writeback, f::WRITEBACK_CACHE),
    (Feature::PosixLocks, f::POSIX_LOCKS),
    (Feature::FlockLocks, f::FLOCK_LOCKS),
    (Feature::MappedIds, f::ALLOW_IDMAP),
    (Feature::ClearAlways, f::HANDLE_KILLPRIV),
    (Feature::ClearOnRequest, f::HANDLE_KILLPRIV_V2),
    // The guest checks ACLs, the daemon applies the umask, and SETXATTR says when setgid is cleared.
    (Feature::PosixAcl, f::POSIX_ACL | f::DONT_MASK | f::SETXATTR_EXT),
    (Feature::SecurityLabel, f::SECURITY_CTX),
    (Feature::CreateGroup, f::CREATE_SUPP_GROUP),
];

/// Guests of this minor version (Linux 7.3) have an overlayfs that supports TMPFILE in its upper layer ("ovl: use linked upper
/// dentry in copy-up tmpfile", Linux 7.2). An older one looks the nameless file's name up again and gets ESTALE. Linux 7.2 has
/// minor version 45 as older kernels do, so it counts as one of them.
const OVERLAY_TMPFILE_MINOR: u32 = 46;

/// The features of a guest that sends `flags`.
pub(super) fn features_of(flags: u64) -> Features {
    FLAGS.into_iter().filter(|(_, all)| flags & all == *all).map(|(feature, _)| feature).collect()
}

/// The flags for a share that offers `features`.
pub(super) fn flags_of(features: Features) -> u64 {
    FLAGS.into_iter().filter(|(feature, _)| features.has(*feature)).fold(ALWAYS, |flags, (_, more)| flags | more)
}

/// The features of a session.
pub(super) fn negotiated(session: &Negotiated) -> Features {
    features_of(session.flags).with_if(session.minor >= OVERLAY_TMPFILE_MINOR, Feature::OverlayTmpfile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_feature_has_flags_of_its_own() {
        let mut seen = ALWAYS;
        for (feature, flags) in FLAGS {
            assert_eq!(flags & seen, 0, "{feature:?}");
            seen |= flags;
            let alone = Features::default().with(feature);
            assert_eq!((flags_of(alone), features_of(flags)), (ALWAYS | flags, alone));
        }
        let all: Features = FLAGS.into_iter().map(|(feature, _)| feature).collect();
        assert_eq!((flags_of(all), features_of(seen), features_of(ALWAYS)), (seen, all, Features::default()));
    }
}
