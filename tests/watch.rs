//! `--watch`: what quiet files may be believed for, and that changes of other processes end it.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::fuse::{AttrOut, EntryOut, ROOT, flag};
use gatherfs_support::private_mounts::{self, Mount};
use gatherfs_support::share::{self, Scratch, Setup, Share};

const PATIENCE: Duration = Duration::from_secs(20);

/// What `--cache auto` allows.
const AUTO: Duration = Duration::from_secs(1);

/// Starts a daemon of root's that may not watch a whole file system.
fn without_sys_admin() -> Vec<String> {
    if !share::is_root() {
        return Vec::new();
    }
    ["setpriv", "--bounding-set=-sys_admin", "--"].map(str::to_owned).to_vec()
}

/// Whether this process may watch a whole file system, with the reason printed where not.
fn may_watch_everything() -> bool {
    let dir = std::fs::File::open("/dev/shm").unwrap();
    let watched = gatherfs::sys::fanotify::Fanotify::of_file_system(std::os::fd::AsFd::as_fd(&dir));
    watched.inspect_err(|e| eprintln!("skipped: no watch over a whole file system here: {e}")).is_ok()
}

/// A directory in memory with a file that is open for writing by a name which it has no more, in a directory that the guest does
/// not know: what is written is not seen by the mark on the file's own directory. A file that was opened by its handle while the
/// kernel had forgotten its name is like that.
fn written_by_another_name() -> (Scratch, std::fs::File) {
    let (directory, elsewhere) = (Scratch::on_tmpfs(), Scratch::on_tmpfs());
    let old_name = elsewhere.path().join("file");
    let writer = std::fs::File::create(&old_name).unwrap();
    std::fs::hard_link(&old_name, directory.path().join("file")).unwrap();
    std::fs::remove_file(&old_name).unwrap();
    (directory, writer)
}

/// A share in which everything was made long ago.
fn quiet_share(options: &[&str]) -> Share {
    quiet_share_before(options, Vec::new())
}

/// As `quiet_share`, its daemon started by `before`.
fn quiet_share_before(options: &[&str], before: Vec<String>) -> Share {
    let directory = Scratch::on_tmpfs();
    std::fs::create_dir(directory.path().join("dir")).unwrap();
    for name in ["file", "other", "dir/inner"] {
        std::fs::write(directory.path().join(name), b"content").unwrap();
    }
    let options: Vec<&str> = ["--watch"].iter().chain(options).copied().collect();
    Share::start(Setup { directory, options: &options, before, ..Setup::default() })
}

fn names_hold(entry: &EntryOut) -> Duration {
    Duration::new(entry.entry_valid, entry.entry_valid_nsec)
}

fn attributes_hold(attr: &AttrOut) -> Duration {
    Duration::new(attr.attr_valid, attr.attr_valid_nsec)
}

/// Asks until the answer is as `wanted`; events of the host's take a moment.
#[track_caller]
fn until<T>(mut ask: impl FnMut() -> T, wanted: impl Fn(&T) -> bool, what: &str) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the attributes of `node`, which is `file` in the root, and the root's names are believed for longer than
/// `long`. The names come later: they are quiet from when the directory is watched, the file from when it was made.
#[track_caller]
fn quiet_for(c: &mut Client, node: u64, long: Duration) {
    until(|| attributes_hold(&c.getattr(node, None).unwrap()), |t| *t > long, "the file is quiet");
    until(|| names_hold(&c.lookup(ROOT, "file").unwrap()), |t| *t > long, "the root is quiet");
}

/// What is answered after one more `change`: an answer that came late on a busy host is no reason to wait for ever.
fn after<T>(change: impl Fn(), ask: impl FnOnce() -> T) -> T {
    change();
    ask()
}

#[test]
fn what_is_quiet_is_believed_longer_the_longer_it_is() {
    let mut share = quiet_share(&[]);
    let c = share.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    let first = attributes_hold(&c.getattr(node, None).unwrap());
    let later = until(|| attributes_hold(&c.getattr(node, None).unwrap()), |t| *t > first + Duration::from_millis(100), "attributes");
    assert!(later < Duration::from_secs(10), "not longer than a part of the time that it was quiet: {later:?}");
    let entry = c.lookup(ROOT, "file").unwrap();
    assert!(names_hold(&entry) > Duration::ZERO && names_hold(&entry) < Duration::from_secs(10));
    // The directory is quiet, so a name that is not there will not be for a while.
    let missing = c.lookup(ROOT, "missing").unwrap();
    assert_eq!(missing.nodeid, 0);
    assert!(names_hold(&missing) > Duration::ZERO);
}

#[test]
fn the_time_ends_at_the_bound_that_is_given() {
    let mut share = quiet_share(&["--attr-timeout", "0.05", "--entry-timeout", "0.05", "--negative-timeout", "0"]);
    let c = share.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    let bound = Duration::from_millis(50);
    until(|| attributes_hold(&c.getattr(node, None).unwrap()), |t| *t == bound, "attributes");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(attributes_hold(&c.getattr(node, None).unwrap()), bound);
    assert_eq!(names_hold(&c.lookup(ROOT, "file").unwrap()), bound);
    assert!(c.lookup(ROOT, "missing").is_err());
}

#[test]
fn what_a_host_process_changes_is_not_believed_at_once() {
    let mut share = quiet_share(&[]);
    let (path, others, inner) = (share.path("file"), share.path("other"), share.path("dir/new"));
    let node = share.client().lookup(ROOT, "file").unwrap().nodeid;
    let other = share.client().lookup(ROOT, "other").unwrap().nodeid;
    let dir = share.client().lookup(ROOT, "dir").unwrap().nodeid;
    let c = share.client();
    let long = Duration::from_millis(500);
    quiet_for(c, node, long);
    until(|| names_hold(&c.lookup(dir, "inner").unwrap()), |t| *t > long, "the directory is watched for two seconds");

    let change = || std::fs::write(&path, b"changed on the host").unwrap();
    until(|| after(change, || attributes_hold(&c.getattr(node, None).unwrap())), |t| *t < long / 2, "the change is known");
    assert!(attributes_hold(&c.getattr(other, None).unwrap()) > long, "another file is as quiet as before");
    assert!(names_hold(&c.lookup(ROOT, "file").unwrap()) > long, "and so is the directory");

    let change = || std::fs::write(&inner, b"").and_then(|()| std::fs::remove_file(&inner)).unwrap();
    until(|| after(change, || names_hold(&c.lookup(dir, "inner").unwrap())), |t| *t < long / 2, "a name was added on the host");
    assert!(names_hold(&c.lookup(ROOT, "other").unwrap()) > long, "to that directory only");
    let change = || std::fs::set_permissions(&others, std::fs::Permissions::from_mode(0o600)).unwrap();
    until(|| after(change, || attributes_hold(&c.getattr(other, None).unwrap())), |t| *t < long / 2, "a mode was changed on the host");
}

#[test]
fn what_the_guest_changes_itself_stays_believed() {
    // In a sandbox the daemon has another process id, by which it must still know what it did itself.
    for sandbox in ["none", "namespace"] {
        if sandbox == "none" || share::is_root() {
            own_changes_stay_believed(sandbox);
        }
    }
}

fn own_changes_stay_believed(sandbox: &str) {
    let mut share = quiet_share(&["--sandbox", sandbox]);
    let c = share.client();
    let long = Duration::from_millis(500);
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    quiet_for(c, node, long);
    let fh = c.open(node, libc::O_RDWR).unwrap().fh;
    c.write(node, fh, 0, b"from the guest").unwrap();
    c.mkdir(ROOT, "guests", 0o755).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(attributes_hold(&c.getattr(node, None).unwrap()) > Duration::ZERO);
    assert!(names_hold(&c.lookup(ROOT, "file").unwrap()) > long, "its own new name makes the directory no less quiet");
}

#[test]
fn the_guests_cache_of_a_quiet_file_outlives_its_opens() {
    let mut share = quiet_share(&[]);
    let path = share.path("file");
    let c = share.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    assert_ne!(c.open(node, libc::O_RDONLY).unwrap().open_flags & flag::FOPEN_KEEP_CACHE, 0);
    std::fs::write(&path, b"changed on the host").unwrap();
    until(|| c.open(node, libc::O_RDONLY).unwrap().open_flags, |flags| flags & flag::FOPEN_KEEP_CACHE == 0, "the change is known");
}

#[test]
fn a_file_with_several_names_keeps_the_time_of_auto() {
    let mut share = quiet_share(&[]);
    std::fs::hard_link(share.path("file"), share.path("second-name")).unwrap();
    let c = share.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(attributes_hold(&c.getattr(node, None).unwrap()), Duration::from_secs(1));
}

#[test]
fn inodes_as_descriptors_are_watched_too() {
    let mut share = quiet_share(&["--inode-file-handles", "never"]);
    let path = share.path("file");
    let c = share.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    let long = Duration::from_millis(500);
    quiet_for(c, node, long);
    let change = || std::fs::write(&path, b"changed on the host").unwrap();
    until(|| after(change, || attributes_hold(&c.getattr(node, None).unwrap())), |t| *t < long / 2, "the change is known");
}

#[test]
fn a_writer_whom_no_directory_shows_is_seen_where_the_whole_file_system_is_watched() {
    if !share::is_root() || !may_watch_everything() {
        return;
    }
    for sandbox in ["none", "namespace", "chroot"] {
        let (directory, writer) = written_by_another_name();
        let mut share = Share::start(Setup { directory, options: &["--watch", "--sandbox", sandbox], ..Setup::default() });
        let c = share.client();
        let node = c.lookup(ROOT, "file").unwrap().nodeid;
        let long = Duration::from_millis(500);
        quiet_for(c, node, long);

        let change = || std::io::Write::write_all(&mut &writer, b"changed on the host").unwrap();
        until(|| after(change, || attributes_hold(&c.getattr(node, None).unwrap())), |t| *t < long / 2, "the change is known");
        assert_eq!(c.open(node, libc::O_RDONLY).unwrap().open_flags & flag::FOPEN_KEEP_CACHE, 0, "{sandbox}");
        assert!(names_hold(&c.lookup(ROOT, "file").unwrap()) > long, "{sandbox}: the directory is as quiet as before");
    }
}

#[test]
fn where_such_a_writer_is_not_seen_files_keep_the_time_of_auto() {
    if !share::is_root() {
        eprintln!("skipped: only root has file handles and still may not watch a whole file system");
        return;
    }
    let (directory, _writer) = written_by_another_name();
    let mut share = Share::start(Setup { directory, options: &["--watch"], before: without_sys_admin(), ..Setup::default() });
    let c = share.client();
    let node = c.lookup(ROOT, "file").unwrap().nodeid;
    until(|| names_hold(&c.lookup(ROOT, "file").unwrap()), |t| *t > AUTO, "the directory is quiet");
    assert_eq!(attributes_hold(&c.getattr(node, None).unwrap()), AUTO);
    assert_eq!(c.open(node, libc::O_RDONLY).unwrap().open_flags & flag::FOPEN_KEEP_CACHE, 0, "its data may have changed");
    assert!(attributes_hold(&c.getattr(ROOT, None).unwrap()) > AUTO, "a marked directory has no unseen writer");
}

#[test]
fn a_file_system_that_others_may_change_costs_the_longer_times_there_only() {
    if !private_mounts::enter() {
        return;
    }
    let mut share = quiet_share(&[]);
    // In place of a network file system: one that is not on the list of local ones.
    let _mount = Mount::new("proc", &share.path("foreign"));
    let c = share.client();
    let foreign = c.lookup(ROOT, "foreign").unwrap().nodeid;
    let inner = c.lookup(foreign, "version").unwrap();
    until(|| names_hold(&c.lookup(ROOT, "file").unwrap()), |t| *t > AUTO, "the rest of the share is watched");
    assert_eq!(names_hold(&c.lookup(foreign, "version").unwrap()), AUTO);
    assert_eq!(attributes_hold(&c.getattr(inner.nodeid, None).unwrap()), AUTO);
    assert_eq!(attributes_hold(&c.getattr(foreign, None).unwrap()), AUTO);
}

/// Marks on directories that the daemon has.
fn marks(pid: u32) -> usize {
    let infos = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = infos.filter_map(|info| std::fs::read_to_string(info.ok()?.path()).ok());
    texts.map(|text| text.lines().filter(|line| line.starts_with("fanotify ino:")).count()).sum()
}

#[test]
fn a_directory_that_is_bound_twice_stays_watched_until_both_nodes_are_forgotten() {
    if !private_mounts::enter() {
        return;
    }
    let mut share = quiet_share_before(&[], without_sys_admin());
    std::fs::create_dir(share.path("bound")).unwrap();
    let _bound = Mount::bind(&share.path("dir"), &share.path("bound"));
    let inner = share.path("dir/new");
    let pid = share.keeper();
    let marks = || marks(pid);
    let c = share.client();
    let (dir, bound) = (c.lookup(ROOT, "dir").unwrap().nodeid, c.lookup(ROOT, "bound").unwrap().nodeid);
    assert_ne!(dir, bound);
    assert_eq!(marks(), 2, "the root and the directory");
    c.forget(bound, 1).unwrap();
    assert_eq!(marks(), 2, "the directory is still known as another node");
    let long = Duration::from_millis(500);
    until(|| names_hold(&c.lookup(dir, "inner").unwrap()), |t| *t > long, "the directory is watched");
    let change = || std::fs::write(&inner, b"").and_then(|()| std::fs::remove_file(&inner)).unwrap();
    until(|| after(change, || names_hold(&c.lookup(dir, "inner").unwrap())), |t| *t < long / 2, "the change is known");
    c.forget(dir, 1).unwrap();
    assert_eq!(marks(), 1);
}

#[test]
fn directories_that_the_guest_forgets_are_let_go() {
    let mut share = quiet_share_before(&[], without_sys_admin());
    let pid = share.keeper();
    let marks = || marks(pid);
    let c = share.client();
    assert_eq!(marks(), 1, "the root");
    let dir = c.lookup(ROOT, "dir").unwrap().nodeid;
    c.lookup(ROOT, "dir").unwrap();
    assert_eq!(marks(), 2);
    c.forget(dir, 1).unwrap();
    assert_eq!(marks(), 2, "one lookup is left");
    c.forget(dir, 1).unwrap();
    assert_eq!(marks(), 1);
    c.lookup(ROOT, "dir").unwrap();
    assert_eq!(marks(), 2);
    c.destroy().unwrap();
    assert_eq!(marks(), 0);
}

#[test]
fn what_changed_while_the_guest_had_forgotten_the_directory_is_not_believed_for_long() {
    let mut share = quiet_share(&[]);
    let inner = share.path("dir/inner");
    let c = share.client();
    let dir = c.lookup(ROOT, "dir").unwrap().nodeid;
    let node = c.lookup(dir, "inner").unwrap().nodeid;
    std::fs::write(&inner, b"seen").unwrap();
    std::thread::sleep(Duration::from_secs(2));
    c.forget(node, 1).unwrap();
    c.forget(dir, 1).unwrap();
    let changed = Instant::now();
    std::fs::write(&inner, b"not seen").unwrap();

    let dir = c.lookup(ROOT, "dir").unwrap().nodeid;
    let entry = c.lookup(dir, "inner").unwrap();

    let believed = Duration::new(entry.attr_valid, entry.attr_valid_nsec);
    let bound = changed.elapsed() / 4 + Duration::from_millis(100);
    assert!(believed < bound, "{believed:?}, although it changed {:?} ago", changed.elapsed());
}
