//! The words with which other programs start virtiofsd, as their sources build them. The daemon must start
//! with them, serve a guest, and mean by them what virtiofsd does.

use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use gatherfs::config::{self, Checked, Listening};
use gatherfs::host::CachePolicy;
use gatherfs::sandbox::Mode;
use gatherfs_support::daemon::{Process, Scratch, gatherfsd, is_root};

use super::{assert_serves, inherit, mount};

/// The number of the inherited socket in these words.
const FD: i32 = 711;

/// One program's way to start the daemon. In the words, SHARE, SOCKET and FD stand for what the program
/// fills in.
struct Line {
    words: &'static [&'static str],
    means: fn(&Checked) -> bool,
    /// Its sandbox is root's to make.
    root: bool,
    /// What the program sets in the environment.
    variable: Option<(&'static str, &'static str)>,
}

/// Kata Containers, Go runtime: `args` of src/runtime/virtcontainers/virtiofsd.go, with the extra arguments
/// of its configuration-qemu.toml.
const KATA_GO: Line = Line {
    words: &[
        "--syslog",
        "--cache=auto",
        "--shared-dir=SHARE",
        "--fd=FD",
        "--inode-file-handles=prefer",
        "--thread-pool-size=1",
        "--announce-submounts",
    ],
    means: |c| c.share.cache == CachePolicy::Auto && c.share.announce_submounts && c.device.threads_per_queue == 16,
    root: true,
    variable: None,
};

/// Kata Containers 2, Go runtime: the same function, before it wrote long options.
const KATA_GO_OLD: Line = Line {
    words: &[
        "--syslog",
        "-o",
        "cache=auto",
        "-o",
        "no_posix_lock",
        "-o",
        "source=SHARE",
        "--fd=FD",
        "-f",
        "--thread-pool-size=1",
        "-o",
        "announce_submounts",
    ],
    means: |c| c.share.cache == CachePolicy::Auto && c.sandbox.mode == Mode::Namespace && c.share.announce_submounts,
    root: true,
    variable: None,
};

/// Kata Containers, Rust runtime: `virtiofsd_args` of
/// src/runtime-rs/crates/resource/src/share_fs/share_virtio_fs_standalone.rs.
const KATA_RUST: Line = Line {
    words: &[
        "--socket-path",
        "SOCKET",
        "--shared-dir",
        "SHARE",
        "--cache",
        "auto",
        "--sandbox",
        "none",
        "--seccomp",
        "none",
        "--inode-file-handles",
        "prefer",
        "--thread-pool-size=1",
        "--announce-submounts",
        "--xattr",
    ],
    means: |c| c.sandbox.mode == Mode::None && c.share.xattr && matches!(c.listening, Listening::Path { .. }),
    root: false,
    variable: None,
};

/// libvirt where the daemon has "separate-options": `qemuVirtioFSBuildCommandLine` of src/qemu/qemu_virtiofs.c
/// with every element of its XML.
const LIBVIRT: Line = Line {
    words: &[
        "--fd=FD",
        "--shared-dir",
        "SHARE",
        "--cache",
        "never",
        "--sandbox",
        "chroot",
        "--xattr",
        "--thread-pool-size=16",
        "--rlimit-nofile=8192",
        "--log-level",
        "debug",
    ],
    means: |c| {
        (c.share.cache, c.sandbox.mode, c.open_files) == (CachePolicy::Never, Mode::Chroot, Some(8192))
            && c.share.xattr
            && c.device.threads_per_queue == 16
            && c.listening == Listening::Inherited(FD)
    },
    root: true,
    variable: None,
};

/// The same where the user is not root: a map for the namespace behind.
const LIBVIRT_UNPRIVILEGED: Line = Line {
    words: &["--fd=FD", "--shared-dir", "SHARE", "--uid-map=:0:1000:1:", "--gid-map=:0:1000:1:"],
    means: |c| c.listening == Listening::Inherited(FD) && c.sandbox.id_maps.uid.len() == 1 && c.sandbox.id_maps.gid.len() == 1,
    root: false,
    variable: None,
};

/// The same function where the daemon does not have "separate-options".
const LIBVIRT_OLD: Line = Line {
    words: &["--fd=FD", "-o", "source=SHARE,cache=always,sandbox=namespace,xattr,no_flock,no_posix_lock", "--thread-pool-size=0", "-d"],
    means: |c| (c.share.cache, c.sandbox.mode) == (CachePolicy::Always, Mode::Namespace) && c.share.xattr,
    root: true,
    variable: None,
};

/// virtme-ng: `VirtioFS.start` of virtme/commands/run.py. It then waits for the file SOCKET.pid.
const VIRTME_NG: Line = Line {
    words: &["--syslog", "--no-announce-submounts", "--socket-path", "SOCKET", "--shared-dir", "SHARE", "--sandbox", "none"],
    means: |c| !c.share.announce_submounts && c.sandbox.mode == Mode::None,
    root: false,
    variable: None,
};

/// podman machine: `createVirtiofsCmd` of pkg/machine/qemu/virtiofsd.go, which runs it in the share.
const PODMAN: Line = Line {
    words: &["--sandbox", "none", "--socket-path", "SOCKET", "--shared-dir", ".", "--seccomp=none"],
    means: |c| c.share.shared_dir == Path::new("."),
    root: false,
    variable: Some(("RUST_LOG", "ERROR")),
};

/// Cloud Hypervisor: docs/fs.md.
const CLOUD_HYPERVISOR: Line = Line {
    words: &["--log-level", "debug", "--socket-path=SOCKET", "--shared-dir=SHARE", "--cache=never", "--thread-pool-size=4"],
    means: |c| c.share.cache == CachePolicy::Never && !c.share.readdirplus && c.device.threads_per_queue == 4,
    root: true,
    variable: None,
};

/// Cloud Hypervisor 0.14: docs/fs.md of that time, with the daemon in C.
const CLOUD_HYPERVISOR_OLD: Line = Line {
    words: &["-d", "--socket-path=SOCKET", "-o", "source=SHARE", "-o", "cache=none"],
    means: |c| c.share.cache == CachePolicy::Never,
    root: true,
    variable: None,
};

impl Line {
    /// The words with what stands for something filled in.
    fn filled(&self, share: &Path, socket: &Path) -> Vec<OsString> {
        let (share, socket) = (share.to_str().expect("text"), socket.to_str().expect("text"));
        let fill = |word: &&str| word.replace("SHARE", share).replace("SOCKET", socket).replace("=FD", &format!("={FD}")).into();
        self.words.iter().map(fill).collect()
    }

    /// Whether it is for a user who is not root.
    fn has_maps(&self) -> bool {
        self.words.iter().any(|word| word.starts_with("--uid-map"))
    }

    /// Panics unless the words mean what they should; true if the daemon can be started with them here.
    fn assert_means(&self, words: &[OsString]) -> bool {
        let arguments = config::parse(std::iter::once("gatherfsd".into()).chain(words.iter().cloned())).expect("a command line");
        let checked = config::check(&arguments, !self.has_maps(), 2).expect("wishes that fit together");
        assert!((self.means)(&checked), "{:?} means {checked:?}", self.words);
        !self.root || is_root("a sandbox")
    }

    /// Starts the daemon with the words, mounts the share and uses it.
    fn assert_is_served(&self) {
        let scratch = Scratch::new();
        let (share, socket) = (scratch.join("share,with=signs"), scratch.join("s"));
        fs::create_dir(&share).expect("the shared directory");
        // As libvirt writes a comma in a list.
        let in_list = share.to_str().expect("text").replace(',', ",,");
        let is_list = self.words.iter().any(|word| word.contains("source=SHARE"));
        let words = self.filled(if is_list { Path::new(&in_list) } else { &share }, &socket);
        if !self.assert_means(&words) {
            return;
        }

        let mut command = gatherfsd();
        command.args(words).current_dir(&share).env_remove("RUST_LOG").envs(self.variable);
        // A monitor listens itself where it hands over a socket.
        let inherited = self.words.contains(&"--fd=FD").then(|| UnixListener::bind(&socket).expect("a socket"));
        if let Some(listener) = &inherited {
            inherit(&mut command, listener, FD);
        }
        let mut process = Process::spawn(&mut command);
        if inherited.is_none() {
            let pid = scratch.join("s.pid");
            assert!(gatherfs_support::daemon::eventually(|| pid.exists()), "{:?}\n{}", self.words, process.log());
        }
        let (guest, mut client) = mount(&socket);
        assert_serves(&mut client, "dir");
        drop((guest, client));
        assert!(process.wait().success(), "{:?}\n{}", self.words, process.log());
    }
}

#[test]
fn kata_containers_starts_the_daemon() {
    KATA_GO.assert_is_served();
    KATA_GO_OLD.assert_is_served();
    KATA_RUST.assert_is_served();
}

#[test]
fn libvirt_starts_the_daemon() {
    LIBVIRT.assert_is_served();
    LIBVIRT_OLD.assert_is_served();
    // Another user's map: what it does is the sandbox's affair.
    LIBVIRT_UNPRIVILEGED.assert_means(&LIBVIRT_UNPRIVILEGED.filled(Path::new("/srv"), Path::new("/s")));
}

#[test]
fn podman_machine_starts_the_daemon() {
    PODMAN.assert_is_served();
}

#[test]
fn virtme_ng_starts_the_daemon() {
    VIRTME_NG.assert_is_served();
}

#[test]
fn cloud_hypervisor_starts_the_daemon() {
    CLOUD_HYPERVISOR.assert_is_served();
    CLOUD_HYPERVISOR_OLD.assert_is_served();
}
