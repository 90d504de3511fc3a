//! Workers that are killed while a guest works: it notices nothing but a pause.

use gatherfs_support::daemon::{Daemon, children_of, eventually};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::ROOT;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn one_kill() {
    let daemon = Daemon::start(&[]);
    let guest = Guest::connect(daemon.socket(), &GuestOptions::default()).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    let made = client.create(ROOT, "file", 0o644, libc::O_RDWR).expect("CREATE");
    let (node, fh) = (made.entry.nodeid, made.open.fh);
    client.write(node, fh, 0, b"contents").expect("WRITE");
    for _ in 0..3 {
        let worker = children_of(daemon.pid())[0];
        kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), Signal::KILL).unwrap();
        assert_eq!(client.read(node, fh, 0, 100).expect("READ"), b"contents");
        assert_eq!(client.lookup(ROOT, "file").expect("LOOKUP").nodeid, node);
        assert!(eventually(|| children_of(daemon.pid()).len() == 1));
    }
    println!("{}", daemon.log());
}
