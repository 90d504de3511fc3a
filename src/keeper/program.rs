//! A program that is to take this one's place: examined in a process of its own, then executed in this one. It runs in the same
//! sandbox, with the same system calls. Its file is a sealed memfd, which only the process outside the sandbox can make: a worker, which
//! shares the descriptors, has no system call to seal one.

use std::ffi::{CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use rustix::process::Signal;

use super::handover::{self, ABLE, Examiner, Given, VARIABLE};
use super::held::Held;
use super::life::{described, is_ready};
use crate::sys::process::{self, Child, End};
use crate::sys::{descriptor, identity};

/// How long a program may take until it says whether it can take over. One that can says so within milliseconds.
const EXAMINATION_MAX: Duration = Duration::from_secs(10);
/// Bytes of what it says that are read.
const SAID_MAX: usize = 1024;

/// Why the kernel may refuse a program that the outer process has found fit.
const DYNAMIC: &str = "; where inodes are kept as descriptors, no dynamic linker begins: give one that is linked statically (cargo static)";

/// A program's file.
#[derive(Debug)]
pub struct Program(Held);

impl Program {
    /// Of a sealed memfd. EPERM for another file.
    pub fn new(file: Held) -> io::Result<Program> {
        if descriptor::is_sealed(file.as_fd()) { Ok(Program(file)) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
    }

    /// An error where this is not, or `memfd` is not, the file that it was: then it is not executed.
    fn check(&self, memfd: &Held) -> io::Result<()> {
        self.0.check()?;
        memfd.check()
    }

    /// Executes it in this process, with what it is to take over. Returns where that fails; this process is then as before.
    pub fn execute(&self, given: &Given<'_>) -> io::Error {
        let executed = || -> io::Result<io::Error> {
            let memfd = given.write()?;
            self.check(&memfd)?;
            descriptor::keep_over_exec(given.start.listing.as_fd())?;
            pass_capabilities_on()?;
            Ok(execute(self.0.as_fd(), &handover::value(&memfd, None)))
        };
        let error = executed().unwrap_or_else(|e| e);
        // Nothing else is executed before the next attempt.
        let _ = descriptor::close_on_exec();
        let _ = identity::keep_capabilities();
        error
    }

    /// Has another process execute it, which only says whether it could take over, as `given` says.
    pub fn examine(self, given: &Given<'_>) -> io::Result<Examined> {
        let memfd = given.write()?;
        let (said, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let keeper = rustix::process::getpid();
        // Here, for what the other process would find open is what this one has by then.
        descriptor::keep_over_exec(given.start.listing.as_fd())?;
        let forked = process::fork_watched();
        if !matches!(forked, Ok(None)) {
            // As in `execute`.
            let _ = descriptor::close_on_exec();
        }
        match forked? {
            Some(child) => Ok(Examined { program: self, child, said, until: Instant::now() + EXAMINATION_MAX }),
            None => {
                // Here the table is this process's own: until the fork a worker could put another file at a number.
                let executed = self
                    .check(&memfd)
                    .and_then(|()| process::end_with(Some(keeper)))
                    .and_then(|()| pass_capabilities_on())
                    .map_or_else(|e| e, |()| execute(self.0.as_fd(), &handover::value(&memfd, Some(&theirs))));
                // Landlock, where files are restricted (docs/SANDBOX.md).
                let hint = if executed.kind() == io::ErrorKind::PermissionDenied { DYNAMIC } else { "" };
                let _ = Examiner::of(theirs).say(Err(&format!("it cannot be executed: {executed}{hint}")));
                process::end_now(1)
            }
        }
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn pass_capabilities_on() -> io::Result<()> {
    identity::pass_capabilities_on().map_err(|errno| io::Error::from_raw_os_error(errno.raw()))
}

/// execveat(2) with the arguments of this process, and its environment with `value` for [`VARIABLE`].
fn execute(program: BorrowedFd<'_>, value: &str) -> io::Error {
    let string = |text: OsString| CString::new(text.into_vec()).unwrap_or_default();
    let arguments: Vec<CString> = std::env::args_os().map(string).collect();
    let pair = |(name, value): (OsString, OsString)| string([name, value].join("=".as_ref()));
    let others = std::env::vars_os().filter(|(name, _)| name != VARIABLE);
    let environment: Vec<CString> = others.chain([(VARIABLE.into(), value.into())]).map(pair).collect();
    process::execute(program, &arguments, &environment)
}

/// A program that is being examined.
#[derive(Debug)]
pub struct Examined {
    program: Program,
    child: Child,
    said: OwnedFd,
    until: Instant,
}

impl Examined {
    /// Readable when there is a [`Examined::finding`].
    pub fn awaited(&self) -> [BorrowedFd<'_>; 2] {
        [self.said.as_fd(), self.child.end()]
    }

    /// The time until there is one in any case.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// What was found.
    pub fn finding(self) -> Finding {
        let mut said = [MaybeUninit::uninit(); SAID_MAX];
        let text = recv(&self.said, &mut said, RecvFlags::DONTWAIT).map_or_else(|_| Vec::new(), |((said, _), _)| said.to_vec());
        let finding = match text.split_first() {
            Some((&ABLE, version)) => Ok(String::from_utf8_lossy(version).into_owned()),
            Some((_, why)) => Err(String::from_utf8_lossy(why).into_owned()),
            // It has ended: that does not wait.
            None if is_ready(self.child.end(), None).unwrap_or(true) => Err(match self.child.wait() {
                Ok(End::Signal(libc::SIGSYS)) => {
                    "it makes a system call that the running program's sandbox forbids; restart instead".to_owned()
                }
                Ok(end) => format!("it was ended by {} before it said that it can take over", described(end)),
                Err(e) => format!("its end is not known: {e}"),
            }),
            None if self.left().is_zero() => Err(format!("it did not say within {} s that it can take over", EXAMINATION_MAX.as_secs())),
            None => return Finding::None(self),
        };
        let _ = self.child.send(Signal::KILL);
        match finding {
            Ok(version) => Finding::Able(self.program, version, self.child),
            Err(why) => Finding::Unable(why, self.child),
        }
    }

    /// Adds the numbers of its descriptors to `named`.
    pub fn name_descriptors(&self, named: &mut Vec<RawFd>) {
        named.extend([self.program.as_fd().as_raw_fd(), self.child.end().as_raw_fd(), self.said.as_raw_fd()]);
    }
}

/// What an examination found.
#[derive(Debug)]
pub enum Finding {
    /// Nothing yet.
    None(Examined),
    /// The program can take over; its version. The process is still to be waited for: it has a copy of each descriptor, and the host
    /// may hold up the end of one that has files open.
    Able(Program, String, Child),
    /// It cannot, for this reason.
    Unable(String, Child),
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, SealFlags};

    use super::*;
    use crate::keeper::deaths::Deaths;
    use crate::keeper::handover::{Cause, Start};

    fn memfd(seals: SealFlags) -> OwnedFd {
        let file = rustix::fs::memfd_create(c"program", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        file
    }

    #[test]
    fn only_a_sealed_file_is_a_program() {
        let made = |file| Program::new(Held::new(file).unwrap()).map_err(|e| e.raw_os_error()).err();
        assert_eq!(made(memfd(SealFlags::WRITE)), None);
        for seals in [SealFlags::empty(), SealFlags::GROW | SealFlags::SHRINK, SealFlags::FUTURE_WRITE] {
            assert_eq!(made(memfd(seals)), Some(Some(libc::EPERM)), "{seals:?}");
        }
        assert_eq!(made(std::fs::File::open("/proc/self/exe").unwrap().into()), Some(Some(libc::EPERM)));
    }

    #[test]
    fn another_sealed_file_at_the_number_of_the_examined_one_is_not_executed() {
        let open = |path: &str| -> OwnedFd { std::fs::File::open(path).unwrap().into() };
        let start = Start {
            line: Vec::new(),
            is_root: false,
            cpus: 1,
            share: 0,
            descriptor_dir: 0,
            listing: open("/proc/self/fd"),
            watch: None,
            records: 0,
            has_landlock: false,
            syslog: None,
            root: None,
            store: None,
        };
        let (cause, deaths) = (Cause::Upgrade(None), Deaths::default());
        let given = Given::new(&start, &cause, (0, 0), &deaths);
        let mut program = Program::new(Held::new(memfd(SealFlags::WRITE)).unwrap()).unwrap();
        let mut handed_over = given.write().unwrap();
        program.check(&handed_over).unwrap();
        handed_over.replace_by(open("/dev/null"));
        assert!(program.check(&handed_over).is_err());
        program.0.replace_by(memfd(SealFlags::WRITE));
        let why = program.execute(&given).to_string();
        assert!(why.contains("another file's by now"), "{why}");
    }
}
