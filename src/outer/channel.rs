//! The channel between the outer process and the keeper: packets on a pair of sockets, one byte that says which, then text. Its two ends
//! do not know what the other process does with a message. Neither end waits: a message that finds no room is lost, and the outer
//! process believes nothing that a worker which a guest has taken over could not say as well.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recvmsg, sendmsg, socketpair,
};

use super::deadline::Deadline;

/// Bytes of text in a message at most: a sentence for a person.
pub const TEXT_MAX: usize = 1024;

const READY: u8 = 1;
const STATUS: u8 = 2;
const ALIVE: u8 = 3;
const UPGRADED: u8 = 4;
const REFUSED: u8 = 5;
const UPGRADE: u8 = 6;
const VERSION: u8 = 7;
const BEGUN: u8 = 8;

/// What the keeper says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A worker begins.
    Begun,
    /// The first worker is ready, and the socket listens.
    Ready,
    /// What the daemon does now, for a person.
    Status(String),
    /// The worker has shown that it lives.
    Alive,
    /// The keeper is another program now: which.
    Upgraded(String),
    /// It is not: why, and what to do.
    Refused(String),
    /// The version of the program that the keeper is now. A program that has not taken another one's place does not say it.
    Version(String),
}

/// What the outer process has received.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message.
    Message(Said),
    /// Nothing more for now.
    Nothing,
    /// The keeper has closed its end.
    Closed,
}

/// The outer process's end.
#[derive(Debug)]
pub struct OuterEnd(OwnedFd);

/// The keeper's end.
#[derive(Debug)]
pub struct KeeperEnd(OwnedFd);

/// What the keeper has received.
#[derive(Debug)]
pub enum Asked {
    /// To execute a program and go on with it.
    Upgrade {
        /// The program, a sealed memfd.
        program: OwnedFd,
        /// The one that runs, to go back to.
        before: Option<OwnedFd>,
        /// A worker that does not finish what is in flight is ended.
        is_forced: bool,
        /// When nobody waits for it any more. An outer process of an earlier version does not say so.
        deadline: Option<Deadline>,
    },
    /// Nothing more for now.
    Nothing,
    /// The outer process has ended.
    Closed,
}

/// Both ends of a channel. EMFILE or ENFILE where there are too many descriptors.
pub fn channel() -> io::Result<(OuterEnd, KeeperEnd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (outer, keeper) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((OuterEnd(outer), KeeperEnd(keeper)))
}

impl OuterEnd {
    /// Asks the keeper to execute `program`, a sealed memfd, and to go on with it; `before` is the one that runs, to go back
    /// to, if it can be executed again. With `is_forced` it ends a worker that does not finish what is in flight. After `deadline` it does
    /// not begin to. WOULDBLOCK or an error of sendmsg(2) where it does not get to know.
    pub fn ask_upgrade(
        &self,
        program: BorrowedFd<'_>,
        before: Option<BorrowedFd<'_>>,
        is_forced: bool,
        deadline: Deadline,
    ) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = [program].into_iter().chain(before).collect();
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let (kind, deadline) = ([UPGRADE, is_forced.into()], deadline.to_bytes());
        sendmsg(&self.0, &[IoSlice::new(&kind), IoSlice::new(&deadline)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message. What is none is skipped. Text has no control characters.
    pub fn hear(&self) -> io::Result<Heard> {
        let mut packet = [0; 1 + TEXT_MAX];
        // No room for descriptors: those that come are closed by the kernel.
        match recvmsg(&self.0, &mut [IoSliceMut::new(&mut packet)], &mut RecvAncillaryBuffer::default(), RecvFlags::empty()) {
            Ok(received) if received.bytes > 0 => {
                let text = printable(&packet[1..received.bytes]);
                Ok(Heard::Message(match packet[0] {
                    READY => Said::Ready,
                    STATUS => Said::Status(text),
                    ALIVE => Said::Alive,
                    UPGRADED => Said::Upgraded(text),
                    REFUSED => Said::Refused(text),
                    VERSION => Said::Version(text),
                    BEGUN => Said::Begun,
                    _ => return Ok(Heard::Nothing),
                }))
            }
            Ok(_) | Err(rustix::io::Errno::CONNRESET) => Ok(Heard::Closed),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Heard::Nothing),
            Err(e) => Err(e.into()),
        }
    }
}

/// Text of another process as one line.
pub fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl KeeperEnd {
    /// The end that an earlier program of this process had.
    pub fn of(socket: OwnedFd) -> KeeperEnd {
        KeeperEnd(socket)
    }

    /// Tells the outer process. What it has no room for is lost, as where it is stopped by a debugger.
    pub fn say(&self, what: &Said) {
        let (kind, text) = match what {
            Said::Begun => (BEGUN, ""),
            Said::Ready => (READY, ""),
            Said::Status(text) => (STATUS, text.as_str()),
            Said::Alive => (ALIVE, ""),
            Said::Upgraded(text) => (UPGRADED, text.as_str()),
            Said::Refused(text) => (REFUSED, text.as_str()),
            Said::Version(text) => (VERSION, text.as_str()),
        };
        let text = &text[..text.floor_char_boundary(TEXT_MAX)];
        let kind = [kind];
        let parts = [IoSlice::new(&kind), IoSlice::new(text.as_bytes())];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let Err(e) = sendmsg(&self.0, &parts, &mut SendAncillaryBuffer::default(), flags) {
            tracing::debug!("the outer process is not told {what:?}: {e}");
        }
    }

    /// What the outer process asks for.
    pub fn asked(&self) -> io::Result<Asked> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let (mut kind, mut deadline) = ([0; 2], [0; Deadline::LEN]);
        let mut parts = [IoSliceMut::new(&mut kind), IoSliceMut::new(&mut deadline)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let bytes = match recvmsg(&self.0, &mut parts, &mut control, flags) {
            Ok(received) if received.bytes > 0 => received.bytes,
            Ok(_) | Err(rustix::io::Errno::CONNRESET) => return Ok(Asked::Closed),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Asked::Nothing),
            Err(e) => return Err(e.into()),
        };
        let deadline = (bytes == kind.len() + deadline.len()).then_some(Deadline::from_bytes(deadline));
        let mut programs = Vec::new();
        for received in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = received {
                programs.extend(rights);
            }
        }
        let mut programs = programs.into_iter();
        match programs.next() {
            Some(program) if kind[0] == UPGRADE => {
                Ok(Asked::Upgrade { program, before: programs.next(), is_forced: kind[1] != 0, deadline })
            }
            // The kernel had no descriptor for it.
            _ if kind[0] == UPGRADE => {
                self.say(&Said::Refused("the keeper has no descriptor left for the program; raise --rlimit-nofile".to_owned()));
                Ok(Asked::Nothing)
            }
            _ => Ok(Asked::Nothing),
        }
    }
}

impl AsFd for OuterEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for KeeperEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_one_end_says_the_other_hears_in_order() {
        let (outer, keeper) = channel().unwrap();
        assert_eq!(outer.hear().unwrap(), Heard::Nothing);
        let all = [
            Said::Begun,
            Said::Ready,
            Said::Status("waiting for a VMM".to_owned()),
            Said::Alive,
            Said::Upgraded("gatherfs 9".to_owned()),
            Said::Refused("why not".to_owned()),
            Said::Version("9.0".to_owned()),
        ];
        all.iter().for_each(|said| keeper.say(said));
        for said in all {
            assert_eq!(outer.hear().unwrap(), Heard::Message(said));
        }
        drop(keeper);
        assert_eq!(outer.hear().unwrap(), Heard::Closed);
    }

    #[test]
    fn text_is_one_line_of_at_most_a_kibibyte() {
        let (outer, keeper) = channel().unwrap();
        keeper.say(&Said::Status("a\nMAINPID=1\u{1b}[0m".to_owned()));
        assert_eq!(outer.hear().unwrap(), Heard::Message(Said::Status("a MAINPID=1 [0m".to_owned())));
        keeper.say(&Said::Status("\u{e4}".repeat(1000)));
        assert_eq!(outer.hear().unwrap(), Heard::Message(Said::Status("\u{e4}".repeat(512))));
    }

    #[test]
    fn a_program_is_passed_on_and_what_is_no_message_is_nothing() {
        let (outer, keeper) = channel().unwrap();
        assert!(matches!(keeper.asked().unwrap(), Asked::Nothing));
        let program = std::fs::File::open("/proc/self/exe").unwrap();
        for asked in [true, false] {
            let until = Deadline::after(Duration::from_secs(1));
            outer.ask_upgrade(program.as_fd(), Some(program.as_fd()), asked, until).unwrap();
            let Asked::Upgrade { program: passed, before, is_forced, deadline } = keeper.asked().unwrap() else {
                panic!("no program came")
            };
            assert!(passed.as_raw_fd() != program.as_raw_fd() && before.is_some());
            assert_eq!((is_forced, deadline), (asked, Some(until)));
        }
        rustix::io::write(&outer.0, &[99]).unwrap();
        assert!(matches!(keeper.asked().unwrap(), Asked::Nothing));
        rustix::io::write(&keeper.0, &[99, 1, 2]).unwrap();
        assert_eq!(outer.hear().unwrap(), Heard::Nothing);
        drop(outer);
        assert!(matches!(keeper.asked().unwrap(), Asked::Closed));
        keeper.say(&Said::Ready);
    }

    #[test]
    fn a_keeper_that_says_too_much_does_not_wait() {
        let (outer, keeper) = channel().unwrap();
        (0..10_000).for_each(|_| keeper.say(&Said::Alive));
        let mut heard = 0;
        while outer.hear().unwrap() == Heard::Message(Said::Alive) {
            heard += 1;
        }
        assert!((1..10_000).contains(&heard), "{heard}");
    }
}
