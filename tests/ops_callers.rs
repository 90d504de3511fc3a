//! On whose behalf things are made: owners, groups, setgid directories, sticky bits and the umask.
//! Only root may act for others, so these tests are skipped for other users.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use gatherfs_support::guest;
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::fuse::{EntryOut, ROOT, init};
use gatherfs_support::share::{self, Share, errno};

const USER: u32 = 1000;
const GROUP: u32 = 1001;
const TEAM: u32 = 2002;

/// A share whose root every user may write to.
fn open_share() -> Share {
    let share = Share::new();
    std::fs::set_permissions(share.root(), std::fs::Permissions::from_mode(0o777)).unwrap();
    share
}

/// Makes one file of each kind in `parent`, each with a name of its own.
fn make_each(c: &mut Client, parent: u64) -> Vec<(&'static str, EntryOut)> {
    vec![
        ("CREATE", c.create(parent, "created", 0o666, libc::O_RDWR).unwrap().entry),
        ("MKNOD", c.mknod(parent, "fifo", libc::S_IFIFO | 0o666, 0).unwrap()),
        ("MKDIR", c.mkdir(parent, "dir", 0o777).unwrap()),
        ("SYMLINK", c.symlink(parent, "link", "x").unwrap()),
        ("TMPFILE", c.tmpfile(parent, 0o666, libc::O_RDWR).unwrap().entry),
    ]
}

#[test]
fn what_a_caller_makes_is_the_callers_and_the_daemon_stays_itself() {
    if !share::is_root() {
        return;
    }
    let mut share = open_share();
    let c = share.client();
    (c.caller.uid, c.caller.gid) = (USER, GROUP);

    for (operation, entry) in make_each(c, ROOT) {
        assert_eq!((entry.attr.uid, entry.attr.gid), (USER, GROUP), "{operation}");
        assert_eq!(c.getattr(entry.nodeid, None).unwrap().attr.uid, USER, "{operation}");
    }
    let on_host = std::fs::metadata(share.path("created")).unwrap();
    assert_eq!((on_host.uid(), on_host.gid()), (USER, GROUP));
    // The thread has its own ids and rights again.
    let c = share.client();
    (c.caller.uid, c.caller.gid) = (0, 0);
    let own = c.create(ROOT, "roots", 0o600, libc::O_RDWR).unwrap().entry.attr;
    assert_eq!((own.uid, own.gid), (0, 0));
    std::fs::set_permissions(share.path("created"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let open = share.open("created", libc::O_RDWR);
    share.client().write(open.node, open.fh, 0, b"root may").unwrap();
}

#[test]
fn callers_without_permission_are_refused() {
    if !share::is_root() {
        return;
    }
    let mut share = Share::new();
    assert!(share.client().init_flags() & init::CREATE_SUPP_GROUP != 0);
    let c = share.client();
    (c.caller.uid, c.caller.gid) = (USER, GROUP);

    assert_eq!(errno(c.create(ROOT, "file", 0o644, libc::O_RDWR)), libc::EACCES);
    assert_eq!(errno(c.mkdir(ROOT, "dir", 0o755)), libc::EACCES);
    assert_eq!(errno(c.mknod(ROOT, "fifo", libc::S_IFIFO | 0o644, 0)), libc::EACCES);
    assert_eq!(errno(c.symlink(ROOT, "link", "x")), libc::EACCES);
    assert_eq!(errno(c.tmpfile(ROOT, 0o644, libc::O_RDWR)), libc::EACCES);

    assert_eq!(std::fs::read_dir(share.root()).unwrap().count(), 0);
    (share.client().caller.uid, share.client().caller.gid) = (0, 0);
    assert!(share.client().mkdir(ROOT, "dir", 0o755).is_ok(), "the thread acts for root again");
}

#[test]
fn an_older_guest_that_sends_no_groups_is_trusted_with_its_own_check() {
    if !share::is_root() {
        return;
    }
    let mut share = Share::start_unmounted(share::Setup::default());
    let c = share.client();
    c.init_with(init::LINUX & !init::CREATE_SUPP_GROUP).unwrap();
    (c.caller.uid, c.caller.gid) = (USER, GROUP);

    for (operation, entry) in make_each(c, ROOT) {
        assert_eq!((entry.attr.uid, entry.attr.gid), (USER, GROUP), "{operation}");
    }
}

#[test]
fn a_supplementary_group_opens_a_directory_of_that_group() {
    if !share::is_root() {
        return;
    }
    let mut share = Share::new();
    chown(share.root(), Some(0), Some(TEAM)).unwrap();
    std::fs::set_permissions(share.root(), std::fs::Permissions::from_mode(0o775)).unwrap();
    let c = share.client();
    (c.caller.uid, c.caller.gid) = (USER, GROUP);
    assert_eq!(errno(c.mkdir(ROOT, "dir", 0o755)), libc::EACCES);

    c.groups = vec![TEAM];
    for (operation, entry) in make_each(c, ROOT) {
        assert_eq!((entry.attr.uid, entry.attr.gid), (USER, GROUP), "{operation}");
    }

    // The group was taken on for these requests only.
    c.groups.clear();
    assert_eq!(errno(c.mkdir(ROOT, "other", 0o755)), libc::EACCES);
    c.groups = vec![TEAM + 1];
    assert_eq!(errno(c.mkdir(ROOT, "other", 0o755)), libc::EACCES, "another group");
    c.groups = vec![TEAM, TEAM + 1];
    assert_eq!(errno(c.mkdir(ROOT, "other", 0o755)), libc::EINVAL, "the guest sends one at most");
}

/// A daemon that is not root and was given capabilities, as a unit with `AmbientCapabilities=` starts it.
#[test]
fn a_caller_does_not_get_the_capabilities_of_a_daemon_that_is_another_user() {
    if !share::is_root() {
        return;
    }
    let capabilities = "+setuid,+setgid,+dac_override,+dac_read_search,+fowner,+chown,+fsetid";
    let (inherited, ambient) = (format!("--inh-caps={capabilities}"), format!("--ambient-caps={capabilities}"));
    let before = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &inherited, &ambient].map(str::to_owned).to_vec();
    let mut share = Share::start(share::Setup { before, ..share::Setup::default() });
    chown(share.root(), Some(0), Some(TEAM)).unwrap();
    std::fs::set_permissions(share.root(), std::fs::Permissions::from_mode(0o775)).unwrap();
    let c = share.client();
    assert!(c.mkdir(ROOT, "roots", 0o755).is_ok(), "the guest's root is the daemon, whom nothing is refused");
    (c.caller.uid, c.caller.gid) = (USER, GROUP);
    assert_eq!(errno(c.mkdir(ROOT, "dir", 0o755)), libc::EACCES);

    c.groups = vec![TEAM];
    for (operation, entry) in make_each(c, ROOT) {
        assert_eq!((entry.attr.uid, entry.attr.gid), (USER, GROUP), "{operation}");
    }
    c.groups.clear();
    assert_eq!(errno(c.mkdir(ROOT, "other", 0o755)), libc::EACCES, "the group was taken on for these requests only");
    (c.caller.uid, c.caller.gid) = (0, 0);
    assert!(c.mkdir(ROOT, "again", 0o755).is_ok(), "the thread has its rights again");
}

#[test]
fn a_setgid_directory_gives_its_group_and_directories_pass_it_on() {
    if !share::is_root() {
        return;
    }
    let mut share = Share::new();
    chown(share.root(), Some(0), Some(TEAM)).unwrap();
    std::fs::set_permissions(share.root(), std::fs::Permissions::from_mode(0o2777)).unwrap();
    let c = share.client();
    (c.caller.uid, c.caller.gid) = (USER, GROUP);

    for (operation, entry) in make_each(c, ROOT) {
        assert_eq!((entry.attr.uid, entry.attr.gid), (USER, TEAM), "{operation}");
        let setgid = entry.attr.mode & 0o2000 != 0;
        assert_eq!(setgid, operation == "MKDIR", "{operation}");
    }
    // Who is not in the group does not get a setgid program of the group (man inode(7)).
    let program = c.create(ROOT, "program", 0o2775, libc::O_RDWR).unwrap().entry.attr;
    assert_eq!((program.gid, program.mode & 0o7777), (TEAM, 0o755));
    c.groups = vec![TEAM];
    let program = c.create(ROOT, "member", 0o2775, libc::O_RDWR).unwrap().entry.attr;
    assert_eq!((program.gid, program.mode & 0o7777), (TEAM, 0o2755));
}

#[test]
fn modes_are_the_guests_with_sticky_and_setuid_bits_and_no_umask_of_the_daemons() {
    let mut share = Share::new();
    let c = share.client();
    let mode = |entry: EntryOut| entry.attr.mode & 0o7777;

    c.umask = 0;
    assert_eq!(mode(c.mkdir(ROOT, "open", 0o1777).unwrap()), 0o1777);
    assert_eq!(mode(c.create(ROOT, "file", 0o666, libc::O_RDWR).unwrap().entry), 0o666);
    assert_eq!(mode(c.create(ROOT, "program", 0o4777, libc::O_RDWR).unwrap().entry), 0o4777);
    assert_eq!(mode(c.mknod(ROOT, "fifo", libc::S_IFIFO | 0o777, 0).unwrap()), 0o777);
    assert_eq!(mode(c.tmpfile(ROOT, 0o666, libc::O_RDWR).unwrap().entry), 0o666);
    c.umask = 0o027;
    assert_eq!(mode(c.mkdir(ROOT, "closed", 0o777).unwrap()), 0o750);
    assert_eq!(mode(c.create(ROOT, "private", 0o666, libc::O_RDWR).unwrap().entry), 0o640);
    assert_eq!(mode(c.mknod(ROOT, "quiet", libc::S_IFIFO | 0o666, 0).unwrap()), 0o640);
}

#[test]
fn a_caller_that_is_no_id_makes_nothing() {
    if !share::is_root() {
        return;
    }
    let mut share = open_share();
    let c = share.client();

    // What a guest sends for an id that its mount does not map (FUSE_INVALID_UIDGID).
    for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX)] {
        (c.caller.uid, c.caller.gid) = (uid, gid);
        assert_eq!(errno(c.mkdir(ROOT, "dir", 0o755)), libc::EINVAL, "{uid} {gid}");
        assert_eq!(errno(c.create(ROOT, "file", 0o644, libc::O_RDWR)), libc::EINVAL, "{uid} {gid}");
    }

    assert_eq!(std::fs::read_dir(share.root()).unwrap().count(), 0);
}

#[test]
fn callers_on_several_queues_do_not_mix() {
    if !share::is_root() {
        return;
    }
    let options = ["--num-request-queues", "4"];
    let guest = guest::frontend::GuestOptions { request_queues: 4, ..Default::default() };
    let mut share = Share::start(share::Setup { options: &options, guest, ..share::Setup::default() });
    std::fs::set_permissions(share.root(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let queues = share.client().guest().request_queues();
    assert_eq!(queues, 4);
    let clients: Vec<Client> = (1..=queues).map(|queue| share.client().on_queue(queue)).collect();

    std::thread::scope(|scope| {
        for (i, mut c) in clients.into_iter().enumerate() {
            scope.spawn(move || {
                for turn in 0..200u32 {
                    let uid = if turn % 3 == 0 { 0 } else { 5000 + i as u32 };
                    (c.caller.uid, c.caller.gid) = (uid, uid + 1000);
                    let attr = c.create(ROOT, &format!("{i}-{turn}"), 0o600, libc::O_RDWR).unwrap().entry.attr;
                    assert_eq!((attr.uid, attr.gid), (uid, uid + 1000));
                }
            });
        }
    });
}
