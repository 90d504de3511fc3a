//! Features, protocol features and the configuration space.

use gatherfs_support::guest::frontend::*;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures as Protocol};

use super::{assert_serves, mounted};

#[test]
fn the_device_offers_what_it_has_logic_for_and_nothing_else() {
    let (_daemon, guest, _client) = mounted(&[], &GuestOptions::default());
    let offered = guest.info().offered;
    assert_eq!(offered, F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_PROTOCOL_FEATURES | F_LOG_ALL, "{offered:#x}");
    let protocol = Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::LOG_SHMFD
        | Protocol::INFLIGHT_SHMFD
        | Protocol::RESET_DEVICE
        | Protocol::BACKEND_REQ;
    assert_eq!(guest.info().protocol_offered, protocol);
}

#[test]
fn there_are_64_request_queues_and_hiprio() {
    let (_daemon, guest, _client) = mounted(&[], &GuestOptions::default());
    assert_eq!(guest.info().queue_num, 65);
}

#[test]
fn the_config_space_has_the_tag_and_the_number_of_request_queues() {
    let (_daemon, guest, _client) = mounted(&["--tag", "my share", "--num-request-queues", "7"], &GuestOptions::default());
    assert_eq!(guest.info().config, Some(("my share".to_owned(), 7)));
}

#[test]
fn the_config_space_is_offered_where_a_tag_or_a_number_of_queues_was_given() {
    let cpus = std::thread::available_parallelism().expect("the number of CPUs").get().min(64) as u32;
    let none: &[&str] = &[];
    let cases = [(none, None), (&["--tag", "share"], Some(("share", cpus))), (&["--num-request-queues", "5"], Some(("gatherfs", 5)))];
    for (words, expected) in cases {
        let (_daemon, guest, _client) = mounted(words, &GuestOptions::default());
        let expected = expected.map(|(tag, queues)| (tag.to_owned(), queues));
        assert_eq!(guest.info().config, expected, "{words:?}");
        assert_eq!(guest.info().protocol_offered.contains(Protocol::CONFIG), expected.is_some(), "{words:?}");
    }
}

#[test]
fn a_tag_of_36_bytes_fills_its_field_without_a_nul() {
    let tag = "t".repeat(36);
    let (_daemon, guest, _client) = mounted(&["--tag", &tag, "--num-request-queues", "64"], &GuestOptions::default());
    assert_eq!(guest.info().config, Some((tag, 64)));
}

#[test]
fn a_part_of_the_config_space_can_be_read_alone() {
    let (_daemon, guest, _client) = mounted(&["--tag", "abcdef", "--num-request-queues", "3"], &GuestOptions::default());
    let flags = VhostUserConfigFlags::empty();
    let (_, tag) = guest.session().get_config(2, 4, flags, &[0; 4]).expect("GET_CONFIG");
    let (_, queues) = guest.session().get_config(36, 4, flags, &[0; 4]).expect("GET_CONFIG");
    assert_eq!((tag.as_slice(), queues.as_slice()), (&b"cdef"[..], &[3, 0, 0, 0][..]));
}

#[test]
fn a_frontend_that_takes_no_protocol_feature_is_served() {
    let options = GuestOptions { protocol: Protocol::empty(), ..GuestOptions::default() };
    let (_daemon, guest, mut client) = mounted(&[], &options);
    assert_eq!((guest.info().config.as_ref(), guest.info().mem_slots), (None, None));
    assert_serves(&mut client);
}

#[test]
fn a_feature_that_was_not_offered_is_refused() {
    const F_RING_PACKED: u64 = 1 << 34;
    let (_daemon, guest, _client) = mounted(&[], &GuestOptions::default());
    let accepted = guest.info().accepted;
    assert!(guest.session().set_features(accepted | F_RING_PACKED).is_err());
}
