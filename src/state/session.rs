//! The record of a FUSE session, in the first page of its arena: the descriptors of the share's root, the generation of node ids, and
//! what INIT agreed. Does not know what that means.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use super::arena::{Arena, ArenaError, Record, Records};
use super::check::Check;
use crate::sys::descriptor::is_open;

/// What [`Fields::state`] says: INIT has begun the session.
const BEGUN: u64 = 1;
/// The session has ended.
const ENDED: u64 = 2;

#[repr(C)]
#[derive(Debug)]
struct Fields {
    /// 0, BEGUN or ENDED; stored last.
    state: AtomicU64,
    generation: AtomicU64,
    negotiated: AtomicU64,
    features: AtomicU32,
    root_fd: AtomicI32,
    root_path_fd: AtomicI32,
    /// Of what is written when the record is made: generation and descriptors.
    check: AtomicU32,
    /// Of what INIT agreed.
    agreed_check: AtomicU32,
    reserved: AtomicU32,
}

// SAFETY: every field is an atomic integer.
unsafe impl Record for Fields {}

impl Fields {
    fn checked(&self) -> u32 {
        let fd = |field: &AtomicI32| u64::from(field.load(Ordering::Relaxed).cast_unsigned());
        let words = [self.generation.load(Ordering::Relaxed), fd(&self.root_fd), fd(&self.root_path_fd)];
        words.into_iter().fold(Check::default().with(1), Check::with).value()
    }
}

/// What a session agreed on: both opaque here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Agreed {
    /// What the share goes by.
    pub features: u32,
    /// What the device goes by, not 0.
    pub negotiated: u64,
}

impl Agreed {
    fn checked(&self) -> u32 {
        Check::default().with(self.features.into()).with(self.negotiated).value()
    }
}

/// The record.
#[derive(Debug)]
pub struct SessionRecord(Records<Fields>);

/// The root as the record of a session names it.
#[derive(Debug)]
pub struct AttachedRoot {
    /// Open for reading where it may be read; on the share's mount.
    pub root_fd: OwnedFd,
    /// An O_PATH descriptor.
    pub path_fd: OwnedFd,
    /// The generation of the session's nodes.
    pub generation: u64,
}

impl SessionRecord {
    /// The record of a session that has not begun, with the root's descriptors, which the share owns, and the generation of its nodes.
    pub fn new(arena: &Arc<Arena>, root_fd: RawFd, path_fd: RawFd, generation: u64) -> SessionRecord {
        let record = SessionRecord(arena.session());
        let fields = record.fields();
        fields.generation.store(generation, Ordering::Relaxed);
        fields.root_fd.store(root_fd, Ordering::Relaxed);
        fields.root_path_fd.store(path_fd, Ordering::Relaxed);
        fields.check.store(fields.checked(), Ordering::Release);
        record
    }

    /// The record in `arena`, which was attached, and what it says of the root. [`ArenaError::Unusable`] where it is damaged.
    pub fn attach(arena: &Arc<Arena>) -> Result<(SessionRecord, AttachedRoot), ArenaError> {
        let record = SessionRecord(arena.session());
        let fields = record.fields();
        let (root_fd, path_fd) = (fields.root_fd.load(Ordering::Relaxed), fields.root_path_fd.load(Ordering::Relaxed));
        let is_agreed = record.agreed().is_none_or(|agreed| agreed.checked() == fields.agreed_check.load(Ordering::Relaxed));
        let is_whole =
            is_agreed && fields.check.load(Ordering::Relaxed) == fields.checked() && fields.state.load(Ordering::Relaxed) <= ENDED;
        if !is_whole || root_fd == path_fd || !is_open(root_fd) || !is_open(path_fd) {
            return Err(ArenaError::Unusable("the record of the session is damaged"));
        }
        // SAFETY: open, and owned by the share of the process that has ended, as its record says.
        let root_fd = unsafe { OwnedFd::from_raw_fd(root_fd) };
        // SAFETY: as above; it is another one.
        let path_fd = unsafe { OwnedFd::from_raw_fd(path_fd) };
        let generation = fields.generation.load(Ordering::Relaxed);
        Ok((record, AttachedRoot { root_fd, path_fd, generation }))
    }

    /// Makes the record in `arena`, before it is attached, name other descriptors of the root. [`ArenaError::Unusable`] where it is damaged;
    /// they are then closed.
    pub fn make_over(arena: &Arc<Arena>, root_fd: OwnedFd, path_fd: OwnedFd) -> Result<(), ArenaError> {
        let record = SessionRecord(arena.session());
        let fields = record.fields();
        if fields.check.load(Ordering::Relaxed) != fields.checked() {
            return Err(ArenaError::Unusable("the record of the session is damaged"));
        }
        fields.root_fd.store(root_fd.into_raw_fd(), Ordering::Relaxed);
        fields.root_path_fd.store(path_fd.into_raw_fd(), Ordering::Relaxed);
        fields.check.store(fields.checked(), Ordering::Release);
        Ok(())
    }

    fn fields(&self) -> &Fields {
        self.0.at(0)
    }

    /// INIT has begun the session.
    pub fn begin(&self, agreed: Agreed) {
        let fields = self.fields();
        fields.features.store(agreed.features, Ordering::Relaxed);
        fields.negotiated.store(agreed.negotiated, Ordering::Relaxed);
        fields.agreed_check.store(agreed.checked(), Ordering::Relaxed);
        fields.state.store(BEGUN, Ordering::Release);
    }

    /// The session has ended.
    pub fn end(&self) {
        self.fields().state.store(ENDED, Ordering::Release);
    }

    /// Whether the session has ended.
    pub fn has_ended(&self) -> bool {
        self.fields().state.load(Ordering::Acquire) == ENDED
    }

    /// What INIT agreed on; `None` before it and after the end.
    pub fn agreed(&self) -> Option<Agreed> {
        let fields = self.fields();
        let is_begun = fields.state.load(Ordering::Acquire) == BEGUN;
        let (features, negotiated) = (fields.features.load(Ordering::Relaxed), fields.negotiated.load(Ordering::Relaxed));
        is_begun.then_some(Agreed { features, negotiated })
    }
}
