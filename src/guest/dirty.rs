//! The dirty log of live migration (vhost-user, VHOST_USER_SET_LOG_BASE): one bit for each page of 4 KiB.
//!
//! The bitmap of vhost-user-backend loses the log when the frontend replaces the memory table during a migration. This one keeps
//! a reference to the log, so that new regions can use it.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use vhost_user_backend::bitmap::{AtomicBitmapMmap, BitmapMmapRegion, BitmapReplace, MemRegionBitmap, MmapLogReg};
use vm_memory::bitmap::{Bitmap, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// The dirty log of one memory region. Without a log it marks nothing.
#[derive(Debug, Clone, Default)]
pub struct DirtyLog {
    bitmap: BitmapMmapRegion,
    log: Arc<Mutex<Option<Arc<MmapLogReg>>>>,
}

impl DirtyLog {
    /// The log's memory, if the frontend has set one.
    pub fn log(&self) -> Option<Arc<MmapLogReg>> {
        self.log.lock().clone()
    }

    /// Sets the log of a new region to that of an earlier one. An error where the log is too short for the region.
    pub fn join(region: &GuestRegionMmap<DirtyLog>, log: &Arc<MmapLogReg>) -> io::Result<()> {
        let piece = LogPiece::new(region, Arc::clone(log))?;
        (**region).bitmap().replace(piece);
        Ok(())
    }
}

impl Bitmap for DirtyLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.bitmap.mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.bitmap.dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> <Self as WithBitmapSlice<'_>>::S {
        self.bitmap.slice_at(offset)
    }
}

impl WithBitmapSlice<'_> for DirtyLog {
    type S = BitmapMmapRegion;
}

impl NewBitmap for DirtyLog {
    fn with_len(_len: usize) -> Self {
        DirtyLog::default()
    }
}

impl BitmapReplace for DirtyLog {
    type InnerBitmap = LogPiece;

    fn replace(&self, piece: LogPiece) {
        self.bitmap.replace(piece.bitmap);
        *self.log.lock() = Some(piece.log);
    }
}

/// The part of a log for one region, with the log.
#[derive(Debug)]
pub struct LogPiece {
    bitmap: AtomicBitmapMmap,
    log: Arc<MmapLogReg>,
}

impl MemRegionBitmap for LogPiece {
    fn new<R: GuestMemoryRegion>(region: &R, log: Arc<MmapLogReg>) -> io::Result<Self> {
        Ok(LogPiece { bitmap: AtomicBitmapMmap::new(region, Arc::clone(&log))?, log })
    }
}
