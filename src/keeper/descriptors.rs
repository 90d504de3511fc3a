//! Descriptors in what a keeper hands over to the program that follows it: as numbers, for they stay open (man execveat(2)); or, for a
//! process that gets them otherwise, as their places in a list. Each module is for a kind of field, as serde's `with` asks for.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, StatxFlags, statx};
use serde::de::Error;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::descriptor::inherited;
use crate::sys::stat::device;

/// A list of descriptors, in which a file that the keeper has twice is once: a service manager keeps it once.
#[derive(Debug, Default)]
struct List {
    fds: Vec<OwnedFd>,
    /// Device and number of those that are regular files or memory, which may come twice: guest memory with several regions.
    files: Vec<Option<(u64, u64)>>,
}

thread_local! {
    /// While the fields are places in a list. Serde has no other way to tell them.
    static LIST: RefCell<Option<List>> = const { RefCell::new(None) };
}

/// What `write` returns; the fields that it writes are places in the list of descriptors, which comes with it.
pub fn listing<T>(write: impl FnOnce() -> T) -> (T, Vec<OwnedFd>) {
    LIST.set(Some(List::default()));
    let written = write();
    (written, LIST.take().unwrap_or_default().fds)
}

/// What `read` returns; the fields that it reads are places in `fds`, of which each gets a descriptor of its own.
pub fn listed<T>(fds: Vec<OwnedFd>, read: impl FnOnce() -> T) -> T {
    LIST.set(Some(List { fds, files: Vec::new() }));
    let read = read();
    LIST.take();
    read
}

impl List {
    fn place(&mut self, fd: &OwnedFd) -> std::io::Result<RawFd> {
        // No failpoint, which are for workers. A frontend's file may be on a server that does not answer.
        let st = statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE | StatxFlags::INO)?;
        let is_file = u32::from(st.stx_mode) & libc::S_IFMT == libc::S_IFREG;
        let file = is_file.then(|| (device(&st), st.stx_ino));
        if let Some(at) = self.files.iter().position(|other| file.is_some() && *other == file) {
            return Ok(RawFd::try_from(at).unwrap_or(RawFd::MAX));
        }
        self.fds.push(fd.try_clone()?);
        self.files.push(file);
        Ok(RawFd::try_from(self.fds.len() - 1).unwrap_or(RawFd::MAX))
    }
}

/// What is written for `fd`.
fn number<S: Serializer>(fd: &OwnedFd) -> Result<RawFd, S::Error> {
    LIST.with_borrow_mut(|list| list.as_mut().map_or_else(|| Ok(fd.as_raw_fd()), |list| list.place(fd))).map_err(S::Error::custom)
}

/// One.
pub mod one {
    use super::*;

    /// Its number.
    pub fn serialize<S: Serializer>(fd: &OwnedFd, to: S) -> Result<S::Ok, S::Error> {
        number::<S>(fd)?.serialize(to)
    }

    /// Takes it over. An error where it was not inherited, or was taken over before.
    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<OwnedFd, D::Error> {
        take::<D>(RawFd::deserialize(from)?)
    }
}

/// One or none.
pub mod optional {
    use super::*;

    /// Its number.
    pub fn serialize<S: Serializer>(fd: &Option<OwnedFd>, to: S) -> Result<S::Ok, S::Error> {
        fd.as_ref().map(number::<S>).transpose()?.serialize(to)
    }

    /// As [`one::deserialize`].
    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<OwnedFd>, D::Error> {
        Option::<RawFd>::deserialize(from)?.map(take::<D>).transpose()
    }
}

/// Any number of them.
pub mod several {
    use super::*;

    /// Their numbers.
    pub fn serialize<S: Serializer>(fds: &[OwnedFd], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(fds.iter().map(number::<S>).collect::<Result<Vec<_>, _>>()?)
    }

    /// As [`one::deserialize`].
    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<OwnedFd>, D::Error> {
        Vec::<RawFd>::deserialize(from)?.into_iter().map(take::<D>).collect()
    }
}

fn take<'d, D: Deserializer<'d>>(fd: RawFd) -> Result<OwnedFd, D::Error> {
    let from_list = LIST.with_borrow(|list| {
        let list = list.as_ref()?;
        let fd = usize::try_from(fd).ok().and_then(|at| list.fds.get(at));
        Some(fd.ok_or_else(|| std::io::ErrorKind::NotFound.into()).and_then(OwnedFd::try_clone))
    });
    from_list.unwrap_or_else(|| inherited(fd)).map_err(|e| D::Error::custom(format!("descriptor {fd}: {e}")))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Fields {
        #[serde(with = "one")]
        one: OwnedFd,
        #[serde(with = "optional")]
        other: Option<OwnedFd>,
        #[serde(with = "several")]
        more: Vec<OwnedFd>,
    }

    fn memory(text: &str) -> OwnedFd {
        let mut file = std::fs::File::from(rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.write_all(text.as_bytes()).unwrap();
        file.into()
    }

    #[test]
    fn a_list_has_each_file_once_and_each_field_gets_its_own_descriptor() {
        let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let file = memory("shared");
        let fields = Fields { one: file.try_clone().unwrap(), other: Some(event()), more: vec![event(), file, memory("other")] };
        let (text, fds) = listing(|| serde_json::to_string(&fields).unwrap());
        assert_eq!((text.as_str(), fds.len()), (r#"{"one":0,"other":1,"more":[2,0,3]}"#, 4));
        let again: Fields = listed(fds, || serde_json::from_str(&text)).unwrap();
        let read = |fd: &OwnedFd| {
            let (mut file, mut text) = (std::fs::File::from(fd.try_clone().unwrap()), String::new());
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!([&again.one, &again.more[1], &again.more[2]].map(read), ["shared", "shared", "other"]);
        assert_ne!(again.one.as_raw_fd(), again.more[1].as_raw_fd());
        // Outside of it they are numbers again.
        assert_eq!(serde_json::to_string(&again).unwrap().split([':', ',']).nth(1), Some(again.one.as_raw_fd().to_string().as_str()));
    }

    #[test]
    fn a_place_that_is_not_in_the_list_is_an_error() {
        for place in ["1", "-1", "4294967296"] {
            let text = format!(r#"{{"one":{place},"other":null,"more":[]}}"#);
            listed(vec![memory("")], || serde_json::from_str::<Fields>(&text)).unwrap_err();
        }
    }
}
