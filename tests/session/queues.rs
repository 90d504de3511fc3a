//! Queues of every kind: features, sizes, numbers, and that one does not wait for another.

use std::sync::Arc;

use gatherfs_support::daemon::eventually;
use gatherfs_support::guest::client::{Call, Client, pages};
use gatherfs_support::guest::frontend::{FIRST_REQUEST, GuestOptions, HIPRIO};
use gatherfs_support::guest::fuse::{ROOT, init, opcode};

use super::{FILE, assert_serves, mounted};

/// Writes and reads back a megabyte in requests that fit `client`'s queue.
fn assert_moves_data(client: &mut Client) {
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i >> 3) as u8 ^ i as u8).collect();
    let step = client.init.max_write.min(256 << 10) as usize;
    let made = client.create(ROOT, "data", 0o644, libc::O_RDWR).expect("CREATE");
    let (node, fh) = (made.entry.nodeid, made.open.fh);
    for (i, part) in data.chunks(step).enumerate() {
        assert_eq!(client.write(node, fh, (i * step) as u64, part), Ok(part.len() as u32));
    }
    for (i, part) in data.chunks(step).enumerate() {
        assert_eq!(client.read(node, fh, (i * step) as u64, step as u32).as_deref(), Ok(part), "at {}", i * step);
    }
    assert_eq!(client.release(node, fh), Ok(()));
}

#[test]
fn data_moves_with_and_without_event_idx_and_indirect_descriptors() {
    for (event_idx, indirect) in [(false, false), (false, true), (true, false), (true, true)] {
        let (daemon, guest, mut client) = mounted(&[], &GuestOptions { event_idx, indirect, ..GuestOptions::default() });
        assert_moves_data(&mut client);
        assert_serves(&mut client);
        // An answer that is there when the guest looks takes no call.
        let is_notified = || {
            let (kicks, calls) = guest.lock(FIRST_REQUEST).notifications();
            kicks > 0 && calls > 0
        };
        assert!(eventually(|| is_notified() || client.getattr(ROOT, None).is_err()), "{:?}", guest.lock(FIRST_REQUEST).notifications());
        assert!(is_notified() && daemon.metrics().get("malformed_chains") == 0);
    }
}

#[test]
fn a_driver_that_looks_for_completions_is_not_called() {
    for event_idx in [false, true] {
        let options = GuestOptions { event_idx, busy_poll: true, ..GuestOptions::default() };
        let (daemon, _guest, mut client) = mounted(&[], &options);
        let before = daemon.metrics().get("calls");
        for _ in 0..100 {
            client.statfs(ROOT).expect("STATFS");
        }
        assert_eq!(daemon.metrics().get("calls"), before, "event_idx {event_idx}");
    }
}

#[test]
fn queues_of_every_size_move_data_and_bound_the_request() {
    for queue_size in [8, 128, 1024, 32768] {
        let (_daemon, _guest, mut client) = mounted(&[], &GuestOptions { queue_size, ..GuestOptions::default() });
        assert_eq!(client.init.max_pages, queue_size - 4, "a request of so many pages still fits a chain");
        assert_moves_data(&mut client);
    }
}

#[test]
fn a_queue_of_two_entries_is_served() {
    for indirect in [false, true] {
        let daemon = gatherfs_support::daemon::Daemon::start(&[]);
        daemon.put(FILE, super::content());
        let options = GuestOptions { queue_size: 2, indirect, ..GuestOptions::default() };
        let guest = gatherfs_support::guest::frontend::Guest::connect(daemon.socket(), &options).expect("a connection");
        let mut client = Client::new(&guest, FIRST_REQUEST);
        // One descriptor for the request, one for the reply: a header may share with what follows.
        (client.split_request, client.split_reply) = (vec![], vec![]);
        client.init_with(init::LINUX & !init::EXPORT_SUPPORT).expect("INIT");
        let node = client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
        assert_eq!(client.getattr(node, None).map(|a| a.attr.size), Ok(14_336));
        assert_eq!(client.forget(node, 1), Ok(()));
        assert!(client.getattr(node, None).is_err());
    }
}

#[test]
fn the_ring_indexes_wrap_around() {
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions { queue_size: 256, indirect: true, ..GuestOptions::default() });
    let mut served = 0;
    while served < 66_000 {
        let batch: Vec<_> = (0..100).map(|_| client.begin(&Call { room: 80, ..Call::new(opcode::STATFS, ROOT, &[]) })).collect();
        for pending in batch {
            let reply = client.finish(pending).expect("STATFS");
            assert_eq!(reply.header.error, 0);
            served += 1;
        }
    }
    let ring = guest.lock(FIRST_REQUEST);
    assert!(ring.avail_idx() == ring.used_idx() && ring.avail_idx() < 10_000, "{}", ring.describe());
}

#[test]
fn each_of_1_4_and_64_request_queues_serves() {
    for request_queues in [1, 4, 64] {
        let options = GuestOptions { request_queues, queue_size: 64, ..GuestOptions::default() };
        let (_daemon, guest, client) = mounted(&[], &options);
        assert_eq!(guest.request_queues(), request_queues);
        std::thread::scope(|scope| {
            for queue in 0..request_queues {
                let mut client = client.on_queue(FIRST_REQUEST + queue);
                scope.spawn(move || (0..5).for_each(|_| assert_serves(&mut client)));
            }
        });
    }
}

#[test]
fn a_disabled_queue_waits_and_the_others_do_not() {
    let (_daemon, guest, mut client) = mounted(&[], &GuestOptions { request_queues: 2, ..GuestOptions::default() });
    guest.enable_queue(FIRST_REQUEST, false).expect("SET_VRING_ENABLE");
    let waits = client.begin(&Call { room: 80, ..Call::new(opcode::STATFS, ROOT, &[]) });
    for queue in [HIPRIO, FIRST_REQUEST + 1] {
        for _ in 0..20 {
            assert_serves(&mut client.on_queue(queue));
        }
    }
    assert!(!client.is_answered(&waits), "a disabled queue was served");
    guest.enable_queue(FIRST_REQUEST, true).expect("SET_VRING_ENABLE");
    assert_eq!(client.finish(waits).expect("STATFS").header.error, 0);
}

#[test]
fn hiprio_goes_on_while_a_request_queue_makes_no_sense() {
    let (daemon, guest, mut client) = mounted(&[], &GuestOptions::default());
    // A guest that does not export: a node is gone with its last lookup.
    client.destroy().expect("DESTROY");
    client.init_with(init::LINUX & !init::EXPORT_SUPPORT).expect("INIT");
    let node = client.lookup(ROOT, FILE).expect("LOOKUP").nodeid;
    let good = {
        let mut ring = guest.lock(FIRST_REQUEST);
        let good = ring.avail_idx();
        ring.set_avail_idx(good.wrapping_add(5000));
        ring.kick();
        good
    };
    assert!(eventually(|| daemon.metrics().get("avail_jumps") > 0));
    assert_eq!(client.forget(node, 1), Ok(()));
    assert_eq!(client.on_queue(HIPRIO).getattr(node, None).err(), Some(libc::ESTALE.into()));
    guest.lock(FIRST_REQUEST).set_avail_idx(good);
    assert_serves(&mut client);
}

#[test]
fn payload_of_1024_and_of_2000_fragments_is_gathered_in_order() {
    let options = GuestOptions { queue_size: 4096, ..GuestOptions::default() };
    let (daemon, _guest, mut client) = mounted(&[], &options);
    for count in [1024u32, 2000] {
        let data: Vec<u8> = (0..count * 4096).map(|i| (i / 4096) as u8 ^ i as u8).collect();
        let pieces: Vec<_> = pages(count * 4096);
        let name = format!("of {count}");
        let made = client.create(ROOT, &name, 0o644, libc::O_RDWR).expect("CREATE");
        let written = client.write_pieces(made.entry.nodeid, (made.open.fh, 0), &data, &pieces);
        assert_eq!(written, Ok(data.len() as u32));
        assert_eq!(daemon.content(&name), data);
        assert_eq!(client.read_pieces(made.entry.nodeid, made.open.fh, 0, &pieces), Ok(data));
    }
}

#[test]
fn many_clients_on_one_queue_all_get_their_own_answers() {
    let (daemon, guest, client) = mounted(&[], &GuestOptions { queue_size: 256, ..GuestOptions::default() });
    for i in 0..8u8 {
        daemon.put(&format!("file {i}"), [i; 4096]);
    }
    std::thread::scope(|scope| {
        for i in 0..8u8 {
            let mut client = client.on_queue(FIRST_REQUEST);
            scope.spawn(move || {
                let (node, fh) = super::open(&mut client, &format!("file {i}"), libc::O_RDONLY);
                for _ in 0..50 {
                    assert_eq!(client.read(node, fh, 0, 4096), Ok(vec![i; 4096]));
                }
            });
        }
    });
    assert_eq!(Arc::strong_count(&guest), 2, "the clients are done");
}
