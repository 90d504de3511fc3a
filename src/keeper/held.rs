//! A descriptor, and which file it is of. Worker and keeper have one table of descriptors: a worker that a guest has taken over can put
//! another file at each number. Does not know what the file is for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, StatxFlags, statx};

/// What is wrong where another file is there.
const REPLACED: &str = "its descriptor is another file's by now, which only a worker does that a guest has taken over; restart gatherfsd";

/// A descriptor of a file that was seen.
#[derive(Debug)]
pub struct Held {
    fd: OwnedFd,
    identity: Identity,
}

/// Which file: its device and its number there. No other file has them as long as this one is open somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: (u32, u32),
    ino: u64,
}

impl Identity {
    fn of(fd: BorrowedFd<'_>) -> io::Result<Identity> {
        // A call that every program's list has, and no failpoint, which are for workers.
        let st = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
        Ok(Identity { device: (st.stx_dev_major, st.stx_dev_minor), ino: st.stx_ino })
    }
}

impl Held {
    /// Of the file that `fd` is of now. An error of statx(2).
    pub fn new(fd: OwnedFd) -> io::Result<Held> {
        Ok(Held { identity: Identity::of(fd.as_fd())?, fd })
    }

    /// An error where the number is another file's by now. It says so for as long as no worker runs, or in a table of one's own.
    pub fn check(&self) -> io::Result<()> {
        if Identity::of(self.fd.as_fd())? == self.identity { Ok(()) } else { Err(io::Error::other(REPLACED)) }
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One or none, handed over as its number. One that another file has replaced is none.
pub mod optional {
    use std::os::fd::{AsRawFd, OwnedFd, RawFd};

    use serde::de::Error;
    use serde::{Deserializer, Serialize, Serializer};

    use super::{AsFd, Held};
    use crate::keeper::descriptors;

    /// Its number.
    pub fn serialize<S: Serializer>(held: &Option<Held>, to: S) -> Result<S::Ok, S::Error> {
        let number = |held: &Held| -> RawFd { held.as_fd().as_raw_fd() };
        held.as_ref().filter(|held| held.check().is_ok()).map(number).serialize(to)
    }

    /// Takes it over. An error where it was not inherited, or was taken over before.
    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<Held>, D::Error> {
        let fd: Option<OwnedFd> = descriptors::optional::deserialize(from)?;
        fd.map(Held::new).transpose().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    impl Held {
        /// Puts `other` at the number, as a worker can.
        pub fn replace_by(&mut self, other: impl AsFd) {
            rustix::io::dup2(other, &mut self.fd).unwrap();
        }
    }

    #[test]
    fn another_file_at_the_number_is_noticed() {
        let mut held = Held::new(File::open("/dev/null").unwrap().into()).unwrap();
        held.check().unwrap();
        held.replace_by(File::open("/dev/zero").unwrap());
        assert!(held.check().unwrap_err().to_string().contains("another file's by now"));
        held.replace_by(File::open("/dev/null").unwrap());
        held.check().unwrap();
    }
}
