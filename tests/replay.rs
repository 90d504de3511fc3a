//! What the keeper tells the next worker when one has died: every state that a VMM can have left is set up again, by messages that the
//! worker accepts. A VMM whose session is not set up again loses its device.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use gatherfs_support::daemon::{Daemon, children_of, eventually, only_child};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, kill_process};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

/// VHOST_USER_F_PROTOCOL_FEATURES.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// VIRTIO_F_VERSION_1.
const F_VERSION_1: u64 = 1 << 32;
/// VHOST_F_LOG_ALL.
const F_LOG_ALL: u64 = 1 << 26;
const NEED_REPLY: u32 = 1 << 3;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Where the VMM has the guest's memory.
const USER: u64 = 0x7000_0000;

/// A region of guest memory: guest address, size, address in the VMM, offset.
type Region = [u64; 4];

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn memory(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("guest-memory", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&fd, len).expect("its length");
    fd
}

fn event() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("an eventfd")
}

/// All that the daemon offers but the configuration space.
fn protocol_features() -> VhostUserProtocolFeatures {
    use VhostUserProtocolFeatures as F;
    F::MQ | F::LOG_SHMFD | F::REPLY_ACK | F::BACKEND_REQ | F::RESET_DEVICE | F::CONFIGURE_MEM_SLOTS
}

/// A VMM that sends what a test says, byte by byte.
struct Vmm {
    daemon: Daemon,
    stream: UnixStream,
}

impl Vmm {
    fn connect() -> Vmm {
        let daemon = Daemon::start(&[]);
        let stream = UnixStream::connect(daemon.socket()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        Vmm { daemon, stream }
    }

    /// As `connect`, with features agreed on.
    fn set_up(protocol: VhostUserProtocolFeatures) -> Vmm {
        let vmm = Vmm::connect();
        vmm.ask(FrontendReq::GET_FEATURES, &[]).expect("GET_FEATURES");
        vmm.say(FrontendReq::SET_OWNER, &[]);
        vmm.say(FrontendReq::SET_FEATURES, &longs(&[F_PROTOCOL_FEATURES | F_VERSION_1]));
        vmm.say(FrontendReq::SET_PROTOCOL_FEATURES, &longs(&[protocol.bits()]));
        vmm
    }

    fn send(&self, request: FrontendReq, flags: u32, payload: &[u8], fds: &[OwnedFd]) {
        let header = words(&[u32::from(request), flags | 1, u32::try_from(payload.len()).expect("a short payload")]);
        let bytes = [header, payload.to_vec()].concat();
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        assert_eq!(sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL), Ok(bytes.len()));
    }

    fn say(&self, request: FrontendReq, payload: &[u8]) {
        self.send(request, 0, payload, &[]);
    }

    fn answer(&self) -> std::io::Result<Vec<u8>> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header)?;
        let len = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let mut payload = vec![0; len as usize];
        (&self.stream).read_exact(&mut payload)?;
        Ok(payload)
    }

    fn ask(&self, request: FrontendReq, payload: &[u8]) -> std::io::Result<Vec<u8>> {
        self.say(request, payload);
        self.answer()
    }

    fn set_memory(&self, regions: &[Region]) {
        let fds: Vec<OwnedFd> = regions.iter().map(|region| memory(region[1])).collect();
        let count = u32::try_from(regions.len()).expect("a few regions");
        self.send(FrontendReq::SET_MEM_TABLE, 0, &[words(&[count, 0]), longs(&regions.concat())].concat(), &fds);
    }

    fn add_memory(&self, region: Region) {
        self.send(FrontendReq::ADD_MEM_REG, 0, &longs(&[&[0][..], &region].concat()), &[memory(region[1])]);
    }

    fn remove_memory(&self, region: Region) {
        self.say(FrontendReq::REM_MEM_REG, &longs(&[&[0][..], &region].concat()));
    }

    fn start_ring(&self, index: u32) {
        self.say(FrontendReq::SET_VRING_NUM, &words(&[index, 16]));
        self.say(FrontendReq::SET_VRING_BASE, &words(&[index, 0]));
        self.say(FrontendReq::SET_VRING_ADDR, &[words(&[index, 0]), longs(&[USER, USER + 8192, USER + 4096, 0])].concat());
        self.say(FrontendReq::SET_VRING_ENABLE, &words(&[index, 1]));
        self.send(FrontendReq::SET_VRING_KICK, 0, &longs(&[index.into()]), &[event()]);
        self.send(FrontendReq::SET_VRING_CALL, 0, &longs(&[index.into()]), &[event()]);
    }

    /// Kills the worker when it has taken everything, and waits for the next one.
    fn kill_worker(&self) {
        self.assert_lives("before the kill");
        let worker = only_child(self.daemon.keeper());
        kill_process(Pid::from_raw(worker.cast_signed()).expect("a process id"), Signal::KILL).expect("the process is there");
        assert!(eventually(|| children_of(self.daemon.keeper()).iter().any(|pid| *pid != worker)), "{}", self.daemon.log());
    }

    fn assert_lives(&self, when: &str) {
        let answered = self.ask(FrontendReq::GET_FEATURES, &[]);
        assert!(answered.is_ok(), "{when}: {answered:?}\n{}", self.daemon.log());
    }

    /// What was set up so far is set up again, twice.
    fn assert_survives(&self) {
        for _ in 0..2 {
            self.kill_worker();
            self.assert_lives("after it");
        }
    }
}

#[test]
fn a_session_with_memory_and_rings() {
    let vmm = Vmm::set_up(protocol_features());
    vmm.set_memory(&[[0, MIB, USER, 0], [4 * GIB, MIB, USER + MIB, 0]]);
    vmm.start_ring(0);
    vmm.start_ring(1);
    vmm.assert_survives();
    let base = vmm.ask(FrontendReq::GET_VRING_BASE, &words(&[1, 0])).expect("GET_VRING_BASE");
    assert_eq!(base, words(&[1, 0]));
    vmm.assert_survives();
}

#[test]
fn requests_that_ask_for_an_answer_get_one_from_every_worker() {
    let vmm = Vmm::set_up(protocol_features());
    for _ in 0..3 {
        vmm.send(FrontendReq::SET_VRING_NUM, NEED_REPLY, &words(&[1, 16]), &[]);
        assert_eq!(vmm.answer().expect("an answer"), longs(&[0]), "{}", vmm.daemon.log());
        vmm.kill_worker();
    }
}

#[test]
fn a_device_that_was_reset_or_has_lost_its_features() {
    let vmm = Vmm::set_up(protocol_features());
    vmm.say(FrontendReq::SET_VRING_ENABLE, &words(&[1, 1]));
    vmm.say(FrontendReq::RESET_DEVICE, &[]);
    vmm.assert_survives();

    let vmm = Vmm::set_up(protocol_features());
    vmm.say(FrontendReq::SET_VRING_ENABLE, &words(&[1, 1]));
    vmm.say(FrontendReq::SET_FEATURES, &longs(&[F_VERSION_1]));
    vmm.assert_survives();

    let vmm = Vmm::set_up(protocol_features());
    vmm.say(FrontendReq::RESET_OWNER, &[]);
    vmm.kill_worker();
    vmm.say(FrontendReq::SET_OWNER, &[]);
    vmm.assert_lives("after another owner");
}

#[test]
fn memory_in_any_order_and_number() {
    let vmm = Vmm::set_up(protocol_features());
    vmm.set_memory(&[[4 * GIB, MIB, USER, 0]]);
    vmm.add_memory([0, MIB, USER + MIB, 0]);
    vmm.assert_survives();
    // A region is named by its place and size.
    vmm.remove_memory([0, MIB, USER + 7 * MIB, 0]);
    vmm.add_memory([0, MIB, USER + 9 * MIB, 0]);
    vmm.assert_survives();

    let vmm = Vmm::set_up(protocol_features() - VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);
    vmm.set_memory(&std::array::from_fn::<Region, 9, _>(|at| [at as u64 * GIB, MIB, USER + at as u64 * MIB, 0]));
    vmm.assert_survives();
}

#[test]
fn a_ring_that_was_stopped_before_its_memory_went() {
    let vmm = Vmm::set_up(protocol_features());
    vmm.set_memory(&[[0, MIB, USER, 0]]);
    vmm.start_ring(1);
    vmm.ask(FrontendReq::GET_VRING_BASE, &words(&[1, 0])).expect("GET_VRING_BASE");
    vmm.set_memory(&[[0, MIB, USER + GIB, 0]]);
    vmm.assert_survives();
}

#[test]
fn memory_that_came_behind_the_log_of_a_migration() {
    let vmm = Vmm::set_up(protocol_features());
    vmm.set_memory(&[[0, MIB, USER, 0]]);
    vmm.send(FrontendReq::SET_LOG_BASE, 0, &longs(&[4096, 0]), &[memory(4096)]);
    vmm.answer().expect("the answer to SET_LOG_BASE");
    vmm.say(FrontendReq::SET_FEATURES, &longs(&[F_PROTOCOL_FEATURES | F_VERSION_1 | F_LOG_ALL]));
    vmm.add_memory([4 * GIB, MIB, USER + MIB, 0]);
    vmm.assert_survives();
    // Given up.
    vmm.say(FrontendReq::SET_FEATURES, &longs(&[F_PROTOCOL_FEATURES | F_VERSION_1]));
    vmm.add_memory([8 * GIB, MIB, USER + 2 * MIB, 0]);
    vmm.assert_survives();
}

#[test]
fn a_worker_that_cannot_be_started_is_tried_again() {
    let vmm = Vmm::set_up(protocol_features());
    vmm.assert_lives("at first");
    let keeper = vmm.daemon.keeper();
    let worker = only_child(keeper);
    let limit_files = |count: u64| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid structure; no limit is set.
        let got = unsafe { libc::prlimit(keeper.cast_signed(), libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit) };
        limit.rlim_cur = count;
        // SAFETY: a valid structure; the old limit is not asked for.
        let set = unsafe { libc::prlimit(keeper.cast_signed(), libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
        assert_eq!((got, set), (0, 0), "prlimit(2)");
    };
    // As many as poll(2) may be given; numbers below are taken.
    limit_files(8);
    kill_process(Pid::from_raw(worker.cast_signed()).expect("a process id"), Signal::KILL).expect("the process is there");
    assert!(eventually(|| vmm.daemon.log().contains("it is tried again")), "{}", vmm.daemon.log());
    limit_files(1024);
    vmm.assert_lives("after it");
}
