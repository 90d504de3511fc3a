//! Descriptors in what a keeper hands over to the program that follows it: as numbers, for they stay open (man execveat(2)). Each
//! module is for a kind of field, as serde's `with` asks for.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sys::descriptor::inherited;

/// One.
pub mod one {
    use super::*;

    /// Its number.
    pub fn serialize<S: Serializer>(fd: &OwnedFd, to: S) -> Result<S::Ok, S::Error> {
        fd.as_raw_fd().serialize(to)
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
        fd.as_ref().map(AsRawFd::as_raw_fd).serialize(to)
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
        to.collect_seq(fds.iter().map(AsRawFd::as_raw_fd))
    }

    /// As [`one::deserialize`].
    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<OwnedFd>, D::Error> {
        Vec::<RawFd>::deserialize(from)?.into_iter().map(take::<D>).collect()
    }
}

fn take<'d, D: Deserializer<'d>>(fd: RawFd) -> Result<OwnedFd, D::Error> {
    inherited(fd).map_err(|e| D::Error::custom(format!("descriptor {fd}: {e}")))
}
