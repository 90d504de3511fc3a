//! Guest memory that is registered with all rings (`--pin-guest-memory`). It is pinned, so that a transfer saves the kernel the
//! look-up of its pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::guest::{GuestMap, MemoryBlocks, PageDescriptor};
use crate::sys::uring::{BUFFERS_MAX, Uring};

/// The most that the kernel registers as one buffer.
const BUFFER_LEN_MAX: usize = 1 << 30;

/// The memory that is registered now.
#[derive(Debug, Default)]
pub(super) struct PinnedMemory {
    /// The buffers by number. Keeps the map of the present registration, so that no map that follows has its addresses: what is
    /// found here is the memory that the kernel has under this number, or is refused by the kernel (EFAULT) because the number
    /// has a new meaning already.
    blocks: RwLock<Option<MemoryBlocks>>,
    /// Held to register.
    registering: Mutex<()>,
    has_failed: AtomicBool,
}

impl PinnedMemory {
    /// Registers `map` with all `rings`, instead of what was registered before. Transfers in flight keep their memory. Where it
    /// cannot be pinned it is not registered, and the first time that is logged.
    pub fn replace(&self, rings: &[Arc<Uring>], map: Arc<GuestMap>) {
        let _registering = self.registering.lock();
        let old = self.blocks.write().take();
        let blocks = MemoryBlocks::new(map, BUFFER_LEN_MAX, BUFFERS_MAX);
        let Some((first, others)) = rings.split_first() else { return };
        let registered = first.register(blocks.pages()).and_then(|()| others.iter().try_for_each(|other| other.register_as(first)));
        // Unmapped after the kernel has let go of it, and before its addresses can be found again.
        drop(old);
        match registered {
            Ok(()) => *self.blocks.write() = Some(blocks),
            Err(e) => {
                for ring in rings {
                    // Nothing is found in `blocks`, so what is left is never named.
                    let _ = ring.unregister();
                }
                if !self.has_failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "--pin-guest-memory: guest memory cannot be pinned: {e}; raise the limit of locked memory (RLIMIT_MEMLOCK, \
                         LimitMEMLOCK= of a systemd unit) to the size of the guest, give --modcaps +ipc_lock as root, or leave the option out"
                    );
                }
            }
        }
    }

    /// The number of the buffer that has all of `pages`.
    pub fn buffer_of(&self, pages: &[PageDescriptor]) -> Option<u16> {
        let index = self.blocks.read().as_ref()?.index_of(pages)?;
        u16::try_from(index).ok()
    }
}
