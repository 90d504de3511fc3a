//! Any bytes as guest memory with a descriptor table at its start: the walk ends, and what it lists lies
//! inside the memory.
#![no_main]

use std::sync::Arc;

use gatherfs::guest::{GuestMap, MappedMemory};
use gatherfs::virtqueue::{DescriptorTable, Request};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const LEN: usize = 0x1_0000;
const QUEUE_SIZE: u16 = 64;

fuzz_target!(|bytes: &[u8]| {
    let Ok(memory) = MappedMemory::from_ranges(&[(GuestAddress(0), LEN)]) else { return };
    let _ = memory.write_slice(&bytes[..bytes.len().min(LEN)], GuestAddress(0));
    let map = Arc::new(GuestMap::new(memory, Arc::default()));
    let (Some(address), Some(base)) = (map.whole(0, 16 * u64::from(QUEUE_SIZE)), map.whole(0, 1)) else { return };
    let base = base.as_ptr() as usize;
    let mut request = Request::new();
    request.walk(u16::from(bytes.first().copied().unwrap_or(0)), DescriptorTable { address, size: QUEUE_SIZE }, &map);
    for page in request.readable().pages().iter().chain(request.writable().pages()) {
        let at = page.address.as_ptr() as usize;
        assert!(at >= base && at + page.len <= base + LEN);
    }
});
