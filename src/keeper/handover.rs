//! What a keeper hands over to the program that takes its place in the same process: its own state, and what the process has had since
//! its start. Both as JSON in a memfd, with descriptors as numbers: they stay open (man execveat(2)). A program ignores fields that it
//! does not know, so that a later version can add some.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::fs::MemfdFlags;
use rustix::net::{SendFlags, send};
use serde::{Deserialize, Serialize};

use super::deaths::Deaths;
use super::descriptors::{one, optional};
use super::held::{self, Held};
use super::relay::Relay;
use super::retention::Retained;
use crate::sys::descriptor::inherited;

/// The variable of the environment that names the memfd, and behind a colon the socket for what an examined program says.
pub const VARIABLE: &str = "GATHERFS_HANDOVER";
/// The version of what is handed over. It changes where a program of before could not read it, or would be wrong to ignore a field.
const VERSION: u32 = 1;
/// Bytes that are handed over at most: a session of 509 regions and 256 rings takes less than a quarter.
const LEN_MAX: u64 = 1 << 20;
/// What an examined program says if it can take over; its version follows.
pub const ABLE: u8 = b'+';
/// What it says if not; the reason follows.
pub const UNABLE: u8 = b'-';

/// What tells a file from any other one of the same host: device, inode number, and when it was born, in nanoseconds.
pub type FileIdentity = (u64, u64, u64);

/// What the process has had since its start. Descriptors by their numbers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// The command line, with the options of a configuration file.
    pub line: Vec<OsString>,
    /// The user that started it was root.
    pub is_root: bool,
    /// The CPUs that it had.
    pub cpus: usize,
    /// The directory or file that is shared.
    pub share: RawFd,
    /// /proc/self/fd.
    pub descriptor_dir: RawFd,
    /// The same, open for reading.
    #[serde(with = "one")]
    pub listing: OwnedFd,
    /// The watch of the whole file system, and the number of its device.
    pub watch: Option<(RawFd, u64)>,
    /// The arena of requests.
    pub records: RawFd,
    /// Landlock restricts the process.
    pub has_landlock: bool,
    /// The socket of the syslog daemon, and the id of the process as it is named there.
    pub syslog: Option<(RawFd, u32)>,
    /// What is shared. An older program does not say it.
    #[serde(default)]
    pub root: Option<FileIdentity>,
    /// Where descriptors are given to be kept for another process, if they are.
    #[serde(default, with = "optional")]
    pub store: Option<OwnedFd>,
}

/// Why a program takes the place of another one.
#[derive(Debug, Serialize, Deserialize)]
pub enum Cause {
    /// It was asked for. The program before, to go back to, if there is a descriptor of it.
    Upgrade(#[serde(with = "held::optional")] Option<Held>),
    /// The other one could not serve, for this reason.
    GoingBack(String),
}

/// The state of a keeper, for the next one.
#[derive(Debug, Serialize)]
pub struct Given<'k> {
    /// Of this layout.
    pub version: u32,
    /// The version of the program.
    pub made_by: &'static str,
    /// What the process has had since its start.
    pub start: &'k Start,
    /// Why the other program takes over.
    pub cause: &'k Cause,
    /// Where frontends connect.
    pub listener: RawFd,
    /// More than one of them, one after the other.
    pub keep_listening: bool,
    /// The frontend's connection, if there is one.
    pub connection: Option<&'k Relay>,
    /// The session of one that may connect again.
    pub retained: Option<&'k Retained>,
    /// The io_uring rings of workers that have ended.
    pub rings: &'k [RawFd],
    /// Processes of the same user may look into a worker.
    pub is_visible: bool,
    /// To the outer process.
    pub channel: RawFd,
    /// Processes that have examined a program, and are to be waited for.
    pub examined: Vec<i32>,
    /// Of workers.
    pub deaths: &'k Deaths,
}

impl<'k> Given<'k> {
    /// Of this program: `start`, `cause`, where frontends connect and the channel to the outer process, the deaths of workers, and nothing
    /// else yet.
    pub fn new(start: &'k Start, cause: &'k Cause, (listener, channel): (RawFd, RawFd), deaths: &'k Deaths) -> Given<'k> {
        let (version, made_by) = (VERSION, env!("CARGO_PKG_VERSION"));
        Given {
            version,
            made_by,
            start,
            cause,
            listener,
            keep_listening: false,
            connection: None,
            retained: None,
            rings: &[],
            is_visible: false,
            channel,
            examined: Vec::new(),
            deaths,
        }
    }

    /// A memfd with it. EMFILE, ENFILE or ENOMEM.
    pub fn write(&self) -> io::Result<Held> {
        let mut file = File::from(rustix::fs::memfd_create(c"gatherfs-handover", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Held::new(file.into())
    }
}

/// The state of the keeper before.
#[derive(Debug, Deserialize)]
pub struct Taken {
    /// As [`Given::start`].
    pub start: Start,
    /// As [`Given::cause`].
    pub cause: Cause,
    /// As [`Given::listener`].
    #[serde(with = "one")]
    pub listener: OwnedFd,
    /// As [`Given::keep_listening`].
    pub keep_listening: bool,
    /// As [`Given::connection`].
    pub connection: Option<Box<Relay>>,
    /// As [`Given::retained`]. As `examined`.
    #[serde(default)]
    pub retained: Option<Retained>,
    /// As [`Given::rings`].
    pub rings: Vec<RawFd>,
    /// As [`Given::is_visible`].
    pub is_visible: bool,
    /// As [`Given::channel`].
    #[serde(with = "one")]
    pub channel: OwnedFd,
    /// As [`Given::examined`]. The first program that could be upgraded does not say it.
    #[serde(default)]
    pub examined: Vec<i32>,
    /// As [`Given::deaths`]. As `examined`.
    #[serde(default)]
    pub deaths: Deaths,
}

/// Why a program cannot take over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The other program is of a later version.
    #[error("gatherfsd {made_by} hands over version {version} of its state, and this program, {}, reads version {VERSION}", env!("CARGO_PKG_VERSION"))]
    Version {
        /// What it hands over.
        version: u32,
        /// Its own version.
        made_by: String,
    },
    /// The variable is not what a keeper sets.
    #[error("{VARIABLE}={0} does not come from a keeper; unset it")]
    Variable(String),
    /// It cannot be read.
    #[error("what the keeper hands over cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It makes no sense, or a descriptor is missing.
    #[error("what the keeper hands over cannot be taken: {0}")]
    Taken(#[from] serde_json::Error),
}

/// What every version begins with.
#[derive(Debug, Deserialize)]
struct Heading {
    version: u32,
    made_by: String,
}

impl Taken {
    fn parse(text: &[u8]) -> Result<Taken, HandOverError> {
        let Heading { version, made_by } = serde_json::from_slice(text)?;
        if version != VERSION {
            return Err(HandOverError::Version { version, made_by });
        }
        Ok(serde_json::from_slice(text)?)
    }
}

/// Where to say whether this program can take over, which is all that it was started for.
#[derive(Debug)]
pub struct Examiner(OwnedFd);

impl Examiner {
    /// At the other end of `socket`.
    pub fn of(socket: OwnedFd) -> Examiner {
        Examiner(socket)
    }

    /// Says so. An error where the keeper has ended.
    pub fn say(&self, result: Result<(), &str>) -> io::Result<()> {
        let text = match result {
            Ok(()) => [&[ABLE], env!("CARGO_PKG_VERSION").as_bytes()].concat(),
            Err(why) => [&[UNABLE], why.as_bytes()].concat(),
        };
        send(&self.0, &text, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Whether a keeper has executed this program, by [`VARIABLE`], and what it has handed over: to be taken, or to be examined only.
pub fn handed_over() -> Option<(Result<Taken, HandOverError>, Option<Examiner>)> {
    let value = std::env::var_os(VARIABLE)?.to_string_lossy().into_owned();
    let (memfd, examiner) = value.split_once(':').map_or((&*value, None), |(memfd, examiner)| (memfd, Some(examiner)));
    let named = |number: &str| number.parse().ok().and_then(|fd| inherited(fd).ok());
    let examiner = match examiner.map(named) {
        Some(None) => return Some((Err(HandOverError::Variable(value)), None)),
        examiner => examiner.flatten().map(Examiner::of),
    };
    let taken = named(memfd).ok_or_else(|| HandOverError::Variable(value.clone())).and_then(|memfd| {
        let mut file = File::from(memfd);
        file.rewind()?;
        let mut text = Vec::new();
        file.take(LEN_MAX).read_to_end(&mut text)?;
        Taken::parse(&text)
    });
    Some((taken, examiner))
}

/// The value of [`VARIABLE`].
pub fn value(memfd: &Held, examiner: Option<&OwnedFd>) -> String {
    let memfd = memfd.as_fd().as_raw_fd();
    examiner.map_or_else(|| memfd.to_string(), |examiner| format!("{memfd}:{}", examiner.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_refused_whatever_else_there_is() {
        let text = br#"{"version": 2, "made_by": "9.0.0", "something": []}"#;
        let said = Taken::parse(text).unwrap_err().to_string();
        assert!(said.starts_with("gatherfsd 9.0.0 hands over version 2") && said.contains("reads version 1"), "{said}");
        for text in ["", "{}", "[1]", r#"{"version": 1, "made_by": "9.0.0"}"#, r#"{"version": -1, "made_by": ""}"#] {
            Taken::parse(text.as_bytes()).unwrap_err();
        }
    }
}
