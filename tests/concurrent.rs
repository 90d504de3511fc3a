//! Several workers of one guest on overlapping trees, each on a queue of its own. What each of them sees depends on
//! the others, so what is checked is what must hold in any order: only errnos that the host could give, as many
//! lookups forgotten as counted, nothing left open, and at the end one tree, in the guest as on the host.
//!
//! `GATHERFS_SEED` repeats a run as far as threads can be repeated, `GATHERFS_CASES` sets the number of rounds.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngSeed, TestRunner};

use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, GuestOptions};
use gatherfs_support::guest::fuse::ROOT;
use gatherfs_support::reference::number_from_env;
use gatherfs_support::reference::operation::{Operation, Outcome, sequence};
use gatherfs_support::reference::through_daemon::ThroughDaemon;
use gatherfs_support::share::{self, Scratch, Setup, Share};

const WORKERS: usize = 4;
const ROUNDS: u32 = 40;
const SEQUENCE_LEN_MAX: usize = 200;

/// What a file system may answer when somebody else is at work in the same tree.
const POSSIBLE: [i32; 15] = [
    libc::ENOENT,
    libc::EEXIST,
    libc::ENOTDIR,
    libc::EISDIR,
    libc::ENOTEMPTY,
    libc::EACCES,
    libc::EPERM,
    libc::EINVAL,
    libc::EBADF,
    libc::ELOOP,
    libc::ENXIO,
    libc::EOPNOTSUPP,
    libc::ETXTBSY,
    libc::ESTALE,
    libc::EMLINK,
];

/// A file as both sides can see it: mode, owner, group, links, size of anything but a directory.
type Seen = (u32, u32, u32, u64, u64);

fn seen(mode: u32, uid: u32, gid: u32, nlink: u64, size: u64) -> Seen {
    (mode, uid, gid, nlink, if mode & libc::S_IFMT == libc::S_IFDIR { 0 } else { size })
}

fn host_tree(directory: &Path, below: &str, found: &mut BTreeMap<String, Seen>) {
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = format!("{below}/{}", entry.file_name().display());
        let st = std::fs::symlink_metadata(entry.path()).unwrap();
        if st.is_dir() {
            host_tree(&entry.path(), &path, found);
        }
        found.insert(path, seen(st.mode(), st.uid(), st.gid(), st.nlink(), st.size()));
    }
}

fn guest_tree(client: &mut Client, node: u64, below: &str, found: &mut BTreeMap<String, Seen>) {
    let fh = client.opendir(node).unwrap().fh;
    let (mut offset, mut names) = (0, Vec::new());
    loop {
        let part = client.readdir(node, fh, offset, 4096).unwrap();
        let Some(last) = part.last() else { break };
        offset = last.off;
        names.extend(part.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()));
    }
    client.releasedir(node, fh).unwrap();
    for name in names.iter().filter(|name| *name != "." && *name != "..") {
        let entry = client.lookup(node, name).unwrap();
        let path = format!("{below}/{name}");
        if entry.attr.mode & libc::S_IFMT == libc::S_IFDIR {
            guest_tree(client, entry.nodeid, &path, found);
        }
        let a = entry.attr;
        found.insert(path, seen(a.mode, a.uid, a.gid, u64::from(a.nlink), a.size));
        client.forget(entry.nodeid, 1).unwrap();
    }
}

/// One worker's part of a round.
fn work(client: &mut Client, case: &str, operations: &[Operation]) {
    let mut daemon = ThroughDaemon::begin(client, case);
    daemon.alone = false;
    for operation in operations {
        if let Outcome::Errno(errno) = daemon.apply(operation) {
            assert!(POSSIBLE.contains(&errno), "{operation:?} is answered with errno {errno}");
        }
    }
    daemon.end();
}

/// The daemon's open descriptors of files in the share, O_PATH or not.
fn descriptors_of(share: &mut Share, case: &str) -> Vec<String> {
    let pid = share.keeper();
    let path = share.path(case);
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the daemon runs");
    let targets = links.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.map(|to| to.display().to_string()).filter(|to| to.starts_with(path.to_str().expect("text"))).collect()
}

fn run(directory: Scratch, options: &[&str]) {
    if !share::is_root() {
        return;
    }
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number_from_env("GATHERFS_SEED").unwrap_or(time.as_nanos() as u64);
    let rounds = number_from_env("GATHERFS_CASES").map_or(ROUNDS, |n| n as u32);
    println!("repeat with GATHERFS_SEED={seed} GATHERFS_CASES={rounds}");
    let mut random = TestRunner::new(Config { rng_seed: RngSeed::Fixed(seed), ..Config::default() });
    let guest = GuestOptions { request_queues: WORKERS, ..GuestOptions::default() };
    let mut share = Share::start(Setup { directory, options, guest, ..Setup::default() });

    for round in 0..rounds {
        let case = format!("case{round}");
        std::fs::create_dir(share.path(&case)).unwrap();
        std::fs::set_permissions(share.path(&case), std::fs::Permissions::from_mode(0o1777)).unwrap();
        let sequences: Vec<_> =
            (0..WORKERS).map(|_| sequence(SEQUENCE_LEN_MAX).new_tree(&mut random).expect("a sequence").current()).collect();
        let clients: Vec<Client> = (0..WORKERS).map(|worker| share.client().on_queue(FIRST_REQUEST + worker)).collect();
        std::thread::scope(|scope| {
            for (mut client, operations) in clients.into_iter().zip(&sequences) {
                let case = &case;
                scope.spawn(move || work(&mut client, case, operations));
            }
        });
        let (mut on_host, mut in_guest) = (BTreeMap::new(), BTreeMap::new());
        host_tree(&share.path(&case), "", &mut on_host);
        let client = share.client();
        let root = client.lookup(ROOT, &case).unwrap().nodeid;
        guest_tree(client, root, "", &mut in_guest);
        client.forget(root, 1).unwrap();
        assert_eq!(in_guest, on_host, "the tree of round {round}, in the guest and on the host");
        assert_eq!(descriptors_of(&mut share, &case), [""; 0], "the guest has forgotten all of it");
        std::fs::remove_dir_all(share.path(&case)).unwrap();
    }
    println!("{rounds} rounds of {WORKERS} workers");
}

#[test]
fn workers_on_overlapping_trees_leave_one_tree() {
    run(Scratch::on_tmpfs(), &[]);
}

#[test]
fn workers_on_overlapping_trees_leave_one_tree_on_disk_with_few_descriptors() {
    run(Scratch::on_disk(), &["--rlimit-nofile", "256"]);
}

/// With a descriptor for each node, one lookup too many or too few shows.
#[test]
fn as_many_lookups_are_forgotten_as_were_counted() {
    run(Scratch::on_tmpfs(), &["--inode-file-handles", "never"]);
}
