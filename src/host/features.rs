//! What share and guest may agree on for a session, as the host uses it. Does not know how INIT encodes it.

/// A feature that the share may offer or the guest support.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Feature {
    /// READDIRPLUS, where the guest chooses between it and READDIR.
    Readdirplus,
    /// OPEN with O_TRUNC truncates; no SETATTR follows.
    AtomicTruncate,
    /// Mount points below the share are announced.
    Submounts,
    /// The guest drops cached data when size or mtime changed.
    AutoInvalidation,
    /// The guest drops cached data on request only.
    ExplicitInvalidation,
    /// Files whose data the guest does not cache may be mapped.
    UncachedMmap,
    /// The guest sends no OPEN.
    NoOpen,
    /// The guest sends no OPENDIR.
    NoOpendir,
    /// The guest may export the share: a node is found again by its id.
    Export,
    /// The guest keeps dirty pages.
    Writeback,
    /// Record locks are held on the host.
    PosixLocks,
    /// flock(2) locks are held on the host.
    FlockLocks,
    /// Mounts of the guest may map ids; requests other than creates then carry no caller.
    MappedIds,
    /// Changes of a file always clear setuid, setgid and capabilities on the host (first version of killpriv).
    ClearAlways,
    /// They do so where the request says so (second version).
    ClearOnRequest,
    /// The guest enforces POSIX ACLs and leaves the umask to the daemon.
    PosixAcl,
    /// Creates carry a security label.
    SecurityLabel,
    /// Creates carry the caller's supplementary group where the parent directory needs it.
    CreateGroup,
    /// The guest's overlayfs supports TMPFILE in its upper layer.
    OverlayTmpfile,
}

/// A set of features.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// Whether `feature` is in the set.
    pub fn has(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u8 != 0
    }

    /// The set with `feature`, if `is_on`.
    #[must_use]
    pub fn with_if(self, is_on: bool, feature: Feature) -> Features {
        if is_on { Features(self.0 | 1 << feature as u8) } else { self }
    }

    /// The set with `feature`.
    #[must_use]
    pub fn with(self, feature: Feature) -> Features {
        self.with_if(true, feature)
    }

    /// The set as bits, to be stored.
    pub(super) fn bits(self) -> u32 {
        self.0
    }

    /// A set that was stored.
    pub(super) fn from_bits(bits: u32) -> Features {
        Features(bits)
    }
}

impl FromIterator<Feature> for Features {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Features {
        features.into_iter().fold(Features::default(), Features::with)
    }
}

impl std::ops::BitOr for Features {
    type Output = Features;

    fn bitor(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}
