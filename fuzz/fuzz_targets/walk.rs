//! Any bytes as guest memory with a descriptor table at its start: the walk ends, and what it lists lies
//! inside the memory.
#![no_main]

use std::sync::Arc;

use gatherfs::guest::{GuestMap, MappedMemory, RingMemory};
use gatherfs::virtqueue::Chain;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const LEN: usize = 0x1_0000;
const QUEUE_SIZE: u16 = 64;

fuzz_target!(|bytes: &[u8]| {
    let Ok(memory) = MappedMemory::from_ranges(&[(GuestAddress(0), LEN)]) else { return };
    let _ = memory.write_slice(&bytes[..bytes.len().min(LEN)], GuestAddress(0));
    let map = Arc::new(GuestMap::new(memory, Arc::default()));
    let Some(base) = map.piece(0, 1).map(|piece| piece.address()) else { return };
    let Some(ring) = RingMemory::new(map, QUEUE_SIZE, 0, 0x400, 0x500) else { return };
    let mut chain = Chain::new();
    chain.walk(u16::from(bytes.first().copied().unwrap_or(0)), Arc::new(ring));
    for page in chain.readable_pages().iter().chain(chain.writable_pages()) {
        assert!(page.address() >= base && page.address() + page.len() <= base + LEN);
    }
});
