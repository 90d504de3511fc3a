//! A bounded reader of the copied bytes of a request.

use std::ffi::CStr;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::types::Errno;

/// The longest name of one path component (NAME_MAX, man pathconf(3)).
pub const NAME_LEN_MAX: usize = 255;
/// The longest target of a symbolic link (PATH_MAX without its NUL).
const TARGET_LEN_MAX: usize = 4095;

/// The arguments of a request that are not decoded yet.
#[derive(Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// A cursor at the begin of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes }
    }

    /// The next `T`. EINVAL where fewer bytes are left.
    pub fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.bytes).map_err(|_| Errno::EINVAL)?;
        self.bytes = rest;
        Ok(value)
    }

    /// The next `len` bytes. EINVAL where fewer are left.
    pub fn take_bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or(Errno::EINVAL)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// The next NUL-terminated string. EINVAL where there is no NUL.
    pub fn take_string(&mut self) -> Result<&'a CStr, Errno> {
        let string = CStr::from_bytes_until_nul(self.bytes).map_err(|_| Errno::EINVAL)?;
        self.bytes = &self.bytes[string.count_bytes() + 1..];
        Ok(string)
    }

    /// The next name of one path component. EINVAL for an empty name, for `.` and `..`, and for a name with a slash or without NUL;
    /// ENAMETOOLONG above 255 bytes.
    pub fn take_name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.take_string()?;
        let bytes = name.to_bytes();
        match bytes {
            b"" | b"." | b".." => Err(Errno::EINVAL),
            _ if bytes.len() > NAME_LEN_MAX => Err(Errno::ENAMETOOLONG),
            _ if bytes.contains(&b'/') => Err(Errno::EINVAL),
            _ => Ok(name),
        }
    }

    /// As `take_name`, with `.` and `..` allowed: the name of a LOOKUP with EXPORT_SUPPORT.
    pub fn take_lookup_name(&mut self) -> Result<&'a CStr, Errno> {
        match self.bytes {
            [b'.', 0, ..] | [b'.', b'.', 0, ..] => self.take_string(),
            _ => self.take_name(),
        }
    }

    /// The next target of a symbolic link. ENOENT where it is empty (man symlink(2)), ENAMETOOLONG above PATH_MAX, EINVAL without
    /// NUL.
    pub fn take_target(&mut self) -> Result<&'a CStr, Errno> {
        let target = self.take_string()?;
        match target.count_bytes() {
            0 => Err(Errno::ENOENT),
            len if len > TARGET_LEN_MAX => Err(Errno::ENAMETOOLONG),
            _ => Ok(target),
        }
    }

    /// Ends the decoding of names. EINVAL where bytes follow, as after a name that contains a NUL.
    pub fn finish(self) -> Result<(), Errno> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The bytes not yet decoded.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(bytes: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut cursor = Cursor::new(bytes);
        let name = cursor.take_name()?.to_bytes().to_vec();
        cursor.finish().map(|()| name)
    }

    #[test]
    fn names_of_one_component_are_taken_and_others_refused() {
        assert_eq!(name(b"file\0"), Ok(b"file".to_vec()));
        assert_eq!(name(b"..."), Err(Errno::EINVAL), "no NUL");
        assert_eq!(name(b"...\0"), Ok(b"...".to_vec()));
        for bad in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0", b"a\0b\0", b""] {
            assert_eq!(name(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        let lookup = |bytes: &[u8]| Cursor::new(bytes).take_lookup_name().map(|n| n.to_bytes().to_vec());
        for (bytes, name) in [(&b".\0"[..], "."), (b"..\0", ".."), (b"...\0", "..."), (b".x\0", ".x")] {
            assert_eq!(lookup(bytes), Ok(name.as_bytes().to_vec()));
        }
        for bad in [&b"\0"[..], b"./\0", b"../\0", b"../..\0", b".", b".."] {
            assert_eq!(lookup(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        let mut long = vec![b'x'; 256];
        long.push(0);
        assert_eq!(name(&long), Err(Errno::ENAMETOOLONG));
        assert!(name(&long[1..]).is_ok());
    }
}
