//! Two servers in one process: each has a share, sessions and counters of its own.

use gatherfs_support::guest::fuse::ROOT;
use gatherfs_support::in_process::{self, Device};

#[test]
fn two_servers_in_one_process_share_nothing() {
    let mut devices = [0, 1].map(|_| Device::start(in_process::share_options(), |service| service));
    for (number, device) in devices.iter_mut().enumerate() {
        for name in ["a", "b"].iter().take(number + 1) {
            device.client().create(ROOT, name, 0o644, libc::O_RDWR).expect("CREATE");
        }
    }
    for (number, device) in devices.iter_mut().enumerate() {
        let creates = device.metrics.requests[gatherfs::fuse::Opcode::Create as usize].get();
        assert_eq!((creates, device.metrics.connections.get()), (number as u64 + 1, 1));
        assert_eq!(device.client().lookup(ROOT, "b").is_ok(), number == 1);
    }
    let [mut first, mut second] = devices;
    first.end();
    assert!(second.client().lookup(ROOT, "a").is_ok(), "the other one goes on");
}
