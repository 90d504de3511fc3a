//! Walking a descriptor chain into page descriptors, beside virtio-queue's iterator on the same chain.
//! `cargo bench --bench walk`.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use gatherfs::guest::{GuestMap, MappedMemory, RingMemory};
use gatherfs::virtqueue::Chain;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

const QUEUE_SIZE: u16 = 512;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A READ of `pages` scattered pages as Linux sends it: header and arguments, then the reply's header and
/// the pages. `pages` + 1 descriptors.
fn chain(pages: u16) -> Vec<RawDescriptor> {
    let count = pages + 1;
    (0..count)
        .map(|i| {
            let (address, len, flags) = match i {
                0 => (0x10_0000, 80, 0),
                1 => (0x10_1000, 16, WRITE),
                _ => (0x20_0000 + u64::from(i) * 0x2000, 4096, WRITE),
            };
            let next = if i + 1 < count { NEXT } else { 0 };
            RawDescriptor::from(Descriptor::new(address, len, flags | next, i + 1))
        })
        .collect()
}

fn walk(c: &mut Criterion) {
    for descriptors in [33u16, 257] {
        let memory = MappedMemory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        let mock = MockSplitQueue::new(&memory, QUEUE_SIZE);
        mock.build_desc_chain(&chain(descriptors - 1)).unwrap();
        let map = Arc::new(GuestMap::new(memory.clone(), Arc::default()));
        let (table, avail, used) = (mock.desc_table_addr().0, mock.avail_addr().0, mock.used_addr().0);
        let mut ring = Some(Arc::new(RingMemory::new(map, QUEUE_SIZE, table, avail, used).unwrap()));
        let mut chain = Chain::new();
        c.bench_function(&format!("gatherfs, {descriptors} descriptors"), |b| {
            b.iter(|| {
                // As a worker does: the memory comes with the chain and goes when it is answered.
                chain.walk(0, ring.take().unwrap());
                let bytes = black_box(chain.writable_bytes());
                ring = chain.release();
                bytes
            });
        });
        let mut queue: Queue = mock.create_queue().unwrap();
        let mut pages: Vec<(*const u8, usize)> = Vec::new();
        c.bench_function(&format!("virtio-queue, {descriptors} descriptors"), |b| {
            b.iter(|| {
                queue.set_next_avail(0);
                pages.clear();
                for descriptor in queue.iter(&memory).unwrap().next().unwrap() {
                    for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
                        let slice = slice.unwrap();
                        pages.push((slice.ptr_guard().as_ptr(), slice.len()));
                    }
                }
                black_box(pages.len())
            });
        });
    }
}

criterion_group!(benches, walk);
criterion_main!(benches);
