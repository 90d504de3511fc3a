//! The session as it is kept for another process, in case this one dies with all its workers: a memfd with the session as JSON and the
//! descriptors that this names, given to the outer process for the service manager at each change of the session, never for a request.
//! What is kept counts only for the session that the arena of requests says it is of: whatever happens in between, an old one is told.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use super::descriptors::{listed, listing, one};
use super::handover::{FileIdentity, Start};
use super::relay::Relay;
use crate::outer;
use crate::state::{ArenaError, RequestRecords};
use crate::sys::descriptor;

/// The version of what is kept.
const VERSION: u32 = 1;
/// Bytes of the JSON at most, as for an upgrade.
const LEN_MAX: u64 = 1 << 20;
/// How long the session has to stay as it is before it is kept: a VMM sends some hundred messages, one after the other.
const SETTLE: Duration = Duration::from_millis(50);
/// From one time that it is kept to the next, where it changes again and again: it costs the service manager some work, and a guest can
/// change it as often as it sends INIT.
const GAP_MAX: Duration = Duration::from_secs(1);
/// How long processes that are killed are waited for. One that the host holds up for longer may still write for a guest's request.
const END_WAIT: Duration = Duration::from_secs(30);

/// What is kept, but for the descriptors.
#[derive(Debug, Serialize)]
struct Given<'k> {
    version: u32,
    made_by: &'static str,
    line: &'k [OsString],
    root: FileIdentity,
    changes: u64,
    restarts: u32,
    #[serde(with = "one")]
    witness: &'k OwnedFd,
    #[serde(with = "one")]
    records: &'k OwnedFd,
    #[serde(with = "one")]
    share_arena: &'k OwnedFd,
    connection: &'k Relay,
}

/// The same, as another process gets it.
#[derive(Debug, Deserialize)]
struct Taken {
    line: Vec<OsString>,
    root: FileIdentity,
    changes: u64,
    restarts: u32,
    #[serde(with = "one")]
    witness: OwnedFd,
    #[serde(with = "one")]
    records: OwnedFd,
    #[serde(with = "one")]
    share_arena: OwnedFd,
    connection: Box<Relay>,
}

/// What every version begins with.
#[derive(Debug, Deserialize)]
struct Heading {
    version: u32,
    made_by: String,
}

/// Why what was kept is not gone on with.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It was made by another program.
    #[error("gatherfsd {0} made it, with another layout or other options")]
    MadeBy(String),
    /// The options are others.
    #[error("the command line is another one")]
    Line,
    /// The directory is another one.
    #[error("another directory or file is shared")]
    Root,
    /// It was being changed.
    #[error("the session was being changed when it ended")]
    Old,
    /// The VMM has gone.
    #[error("the VMM has disconnected")]
    HungUp,
    /// Processes of before live on.
    #[error("the processes of before have not ended within {} s", END_WAIT.as_secs())]
    Alive,
    /// It cannot be read, or is not complete.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It makes no sense, or is not complete.
    #[error("it cannot be taken: {0}")]
    Taken(#[from] serde_json::Error),
    /// The arena of requests cannot be used.
    #[error("{0}")]
    Records(#[from] ArenaError),
}

/// A session that another process had, whose table of descriptors is gone.
#[derive(Debug)]
pub struct Kept {
    /// The frontend's connection.
    pub connection: Box<Relay>,
    /// The arena of the guest's files, which `records` names.
    pub share_arena: OwnedFd,
    /// The arena of requests.
    pub records: Arc<RequestRecords>,
    /// Processes that have ended in this session.
    pub restarts: u32,
}

impl Kept {
    /// From `fds`, in the order of their numbers, for a daemon with this command `line` that shares the file `root`. Waits for the end of
    /// the processes of before, which has begun.
    pub fn take(fds: Vec<(usize, OwnedFd)>, line: &[OsString], root: FileIdentity) -> Result<Kept, KeptError> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "descriptors are missing");
        if fds.iter().enumerate().any(|(at, (number, _))| at != *number) {
            return Err(missing().into());
        }
        let mut rest = fds.into_iter().map(|(_, fd)| fd);
        let text = read(rest.next().ok_or_else(missing)?)?;
        let heading: Heading = serde_json::from_slice(&text)?;
        if heading.version != VERSION || heading.made_by != env!("CARGO_PKG_VERSION") {
            return Err(KeptError::MadeBy(heading.made_by));
        }
        let taken: Taken = listed(rest.collect(), || serde_json::from_slice(&text))?;
        if taken.line != line {
            return Err(KeptError::Line);
        }
        if taken.root != root {
            return Err(KeptError::Root);
        }
        if taken.connection.has_hung_up()? {
            return Err(KeptError::HungUp);
        }
        if !await_hang_up(taken.witness.as_fd())? {
            return Err(KeptError::Alive);
        }
        for fd in [&taken.records, &taken.share_arena] {
            if !descriptor::is_memory(fd.as_fd()) {
                return Err(io::Error::from_raw_os_error(libc::EINVAL).into());
            }
        }
        let records = RequestRecords::attach(taken.records)?;
        if records.changes() != Some(taken.changes) || !taken.connection.is_quiet() {
            return Err(KeptError::Old);
        }
        let Taken { share_arena, connection, restarts, .. } = taken;
        // The number that it names was of another table.
        records.set_share_arena(Some(share_arena.as_fd()));
        Ok(Kept { connection, share_arena, records, restarts: restarts.saturating_add(1) })
    }
}

/// The text in a memfd; nothing else is read, for it might not answer.
fn read(memfd: OwnedFd) -> io::Result<Vec<u8>> {
    if !descriptor::is_memory(memfd.as_fd()) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let (mut file, mut text) = (File::from(memfd), Vec::new());
    file.rewind()?;
    file.take(LEN_MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// Waits until the other end of `witness` is closed everywhere.
fn await_hang_up(witness: BorrowedFd<'_>) -> io::Result<bool> {
    let until = Instant::now() + END_WAIT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Bytes may be there to be read, which is not to end the wait.
        let mut watched = [PollFd::from_borrowed_fd(witness, PollFlags::empty())];
        match poll(&mut watched, Timespec::try_from(left).ok().as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(watched[0].revents().contains(PollFlags::HUP)),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// When the session is kept: as soon as it has settled, but the less often the more often it changes.
#[derive(Debug, Default)]
struct Rate {
    last: Option<Instant>,
    gap: Duration,
}

impl Rate {
    /// When it is kept if it does not change after `now`.
    fn due(&self, now: Instant) -> Instant {
        self.last.map_or(now, |last| last + self.gap).max(now + SETTLE)
    }

    /// It is kept.
    fn note_kept(&mut self, now: Instant) {
        let is_soon = self.last.is_some_and(|last| now.saturating_duration_since(last) <= 2 * GAP_MAX);
        self.gap = if is_soon { (2 * self.gap).clamp(SETTLE, GAP_MAX) } else { Duration::ZERO };
        self.last = Some(now);
    }
}

/// What is kept of the session, as far as this process knows.
#[derive(Debug)]
pub struct Keeping {
    /// Hangs up when this process and its workers have ended, for they alone have the other end. Readable when a worker has another arena
    /// of the guest's files.
    witness: OwnedFd,
    /// The changes of the session that is kept.
    kept: Option<u64>,
    /// Those of the present one, and when it is kept if it stays so.
    settling: Option<(u64, Instant)>,
    rate: Rate,
    /// Processes that have ended in this session.
    pub restarts: u32,
    /// From when this process has taken a session over until a worker has.
    pub taken_over: Option<OwnedFd>,
}

impl Keeping {
    /// Nothing yet; a worker tells by `records` that there is another arena.
    pub fn new(records: &RequestRecords) -> io::Result<Keeping> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (witness, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        records.set_notice(other);
        Ok(Keeping { witness, kept: None, settling: None, rate: Rate::default(), restarts: 0, taken_over: None })
    }

    /// Readable when there may be something to keep.
    pub fn awaited(&self) -> BorrowedFd<'_> {
        self.witness.as_fd()
    }

    /// What a person is told of it, behind the rest.
    pub fn status(&self) -> String {
        match self.restarts {
            0 => String::new(),
            1 => "; the session has outlived the daemon once".to_owned(),
            restarts => format!("; the session has outlived the daemon {restarts} times"),
        }
    }

    /// Takes note of what made [`Keeping::awaited`] readable.
    pub fn hear(&self) {
        let mut bytes = [0; 64];
        while rustix::net::recv(&self.witness, &mut bytes, RecvFlags::DONTWAIT).is_ok_and(|(_, len)| len == bytes.len()) {}
    }

    /// The time until there is something to keep.
    pub fn left(&self) -> Option<Duration> {
        self.settling.map(|(_, at)| at.saturating_duration_since(Instant::now()))
    }

    /// Adds the numbers of its descriptors to `named`.
    pub fn name_descriptors(&self, records: &RequestRecords, named: &mut Vec<RawFd>) {
        named.push(self.witness.as_raw_fd());
        named.extend(records.notice());
        named.extend(self.taken_over.as_ref().map(AsRawFd::as_raw_fd));
    }

    /// Keeps the session where it is another one than before and has settled; `None` where there is none to be kept.
    pub fn keep(&mut self, start: &Start, records: &RequestRecords, connection: Option<&Relay>) {
        let (Some(store), Some(root)) = (&start.store, start.root) else { return };
        let Some(connection) = connection else {
            (self.settling, self.restarts, self.rate) = (None, 0, Rate::default());
            if self.kept.take().is_some()
                && let Err(e) = outer::keep(store.as_fd(), &[])
            {
                tracing::warn!("the service manager cannot be told to forget the session that has ended: {e}");
            }
            return;
        };
        // It will be told when there is the other arena.
        let Some(changes) = records.changes() else { return };
        if self.kept == Some(changes) {
            self.settling = None;
            return;
        }
        let now = Instant::now();
        match self.settling {
            Some((of, at)) if of == changes && at > now => {}
            Some((of, _)) if of == changes && connection.is_quiet() => {
                self.settling = None;
                // Once, whatever comes of it: a change will try again.
                self.kept = Some(changes);
                self.rate.note_kept(now);
                if let Err(e) = self.give(store, (start, root, changes), records, connection) {
                    tracing::warn!("the session is not kept for the case that this process dies: {e}");
                }
            }
            _ => self.settling = Some((changes, self.rate.due(now))),
        }
    }

    /// `changes` were read before: an arena that is another one by now makes the session that is kept an old one.
    fn give(
        &self,
        store: &OwnedFd,
        (start, root, changes): (&Start, FileIdentity, u64),
        records: &RequestRecords,
        connection: &Relay,
    ) -> io::Result<()> {
        let no_memfd = || io::Error::new(io::ErrorKind::NotFound, "the records have no file (RLIMIT_FSIZE is too low)");
        let share_arena = records.inherit_share_arena()?.ok_or_else(no_memfd)?;
        let own_records = records.descriptor().ok_or_else(no_memfd)?.try_clone_to_owned()?;
        let given = Given {
            version: VERSION,
            made_by: env!("CARGO_PKG_VERSION"),
            line: &start.line,
            root,
            changes,
            restarts: self.restarts,
            witness: &self.witness,
            records: &own_records,
            share_arena: &share_arena,
            connection,
        };
        let (text, fds) = listing(|| serde_json::to_vec(&given));
        let mut memfd = File::from(rustix::fs::memfd_create(c"gatherfs-session", MemfdFlags::CLOEXEC)?);
        memfd.write_all(&text?)?;
        let all: Vec<BorrowedFd<'_>> = [memfd.as_fd()].into_iter().chain(fds.iter().map(AsFd::as_fd)).collect();
        outer::keep(store.as_fd(), &all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often a session is kept that changes once in `every`, in 20 s.
    fn kept(every: Duration) -> usize {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let (mut kept, mut due) = (0, None);
        for ms in 0..20_000 {
            let now = start + Duration::from_millis(ms);
            if due.is_some_and(|at| at <= now) {
                rate.note_kept(now);
                (kept, due) = (kept + 1, None);
            }
            if Duration::from_millis(ms % every.as_millis() as u64).is_zero() {
                due = Some(rate.due(now));
            }
        }
        kept
    }

    #[test]
    fn a_session_that_changes_again_and_again_is_kept_about_once_a_second() {
        for (every_ms, least, most) in [(60, 20, 30), (300, 15, 30), (1200, 16, 17), (5000, 4, 4)] {
            let kept = kept(Duration::from_millis(every_ms));
            assert!((least..=most).contains(&kept), "{kept} times, where it changes every {every_ms} ms");
        }
        assert_eq!(kept(Duration::from_millis(20)), 0, "it never settles");
    }

    #[test]
    fn a_change_after_a_pause_is_kept_at_once() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!(rate.due(start), start + SETTLE);
        rate.note_kept(start);
        assert_eq!(rate.due(start + GAP_MAX), start + GAP_MAX + SETTLE);
    }
}
