//! Requests that make an inode, with the mode, umask and extensions that Linux sends with them.

use zerocopy::{FromBytes, IntoBytes};

use super::super::fuse::{self, CreateIn, CreateOut, EntryOut, ExtHeader, MkdirIn, MknodIn, SecctxHeader, opcode};
use super::{Call, Client, Result};

impl Client {
    /// MKNOD. `mode` has the file type.
    pub fn mknod(&mut self, parent: u64, name: &str, mode: u32, rdev: u32) -> Result<EntryOut> {
        let request = MknodIn { mode: self.masked(mode), rdev, umask: self.umask, padding: 0 };
        self.call_create(opcode::MKNOD, parent, &[request.as_bytes(), &fuse::name(name)])
    }

    /// MKDIR.
    pub fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Result<EntryOut> {
        let request = MkdirIn { mode: self.masked(mode), umask: self.umask };
        self.call_create(opcode::MKDIR, parent, &[request.as_bytes(), &fuse::name(name)])
    }

    /// SYMLINK `name` in `parent` to `target`.
    pub fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Result<EntryOut> {
        let args: &[&[u8]] = &[&fuse::name(name), &fuse::name(target)];
        self.call_create(opcode::SYMLINK, parent, args)
    }

    /// CREATE and open `name` in `parent`.
    pub fn create(&mut self, parent: u64, name: &str, mode: u32, flags: i32) -> Result<CreateOut> {
        self.create_as(opcode::CREATE, parent, &fuse::name(name), (mode, flags))
    }

    /// TMPFILE: a nameless open file in `parent`. The name Linux sends is that of an anonymous
    /// dentry, `/`; the device must not use it.
    pub fn tmpfile(&mut self, parent: u64, mode: u32, flags: i32) -> Result<CreateOut> {
        self.create_as(opcode::TMPFILE, parent, &fuse::name("/"), (mode, flags))
    }

    fn create_as(&mut self, opcode: u32, parent: u64, name: &[u8], (mode, flags): (u32, i32)) -> Result<CreateOut> {
        let mode = self.masked(mode) | libc::S_IFREG;
        let (flags, umask) = (flags as u32, self.umask);
        let request = CreateIn { flags, mode, umask, open_flags: 0 };
        self.call_create(opcode, parent, &[request.as_bytes(), name])
    }

    /// A create: `args` with the extensions behind.
    fn call_create<T: FromBytes>(&mut self, op: u32, dir: u64, args: &[&[u8]]) -> Result<T> {
        let extensions = self.extensions();
        self.call_for(Call { extensions: &extensions, ..Call::new(op, dir, args) })
    }

    /// What Linux appends to a create: security contexts when agreed, then groups.
    fn extensions(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.init_flags() & fuse::init::SECURITY_CTX != 0 {
            bytes.extend_from_slice(&self.security_context());
        }
        if !self.groups.is_empty() {
            let size = (size_of::<ExtHeader>() + 4 + 4 * self.groups.len()).next_multiple_of(8);
            let end = bytes.len() + size;
            let header = ExtHeader { size: size as u32, kind: fuse::EXT_GROUPS };
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice((self.groups.len() as u32).as_bytes());
            bytes.extend_from_slice(self.groups.as_bytes());
            bytes.resize(end, 0);
        }
        bytes
    }

    fn security_context(&self) -> Vec<u8> {
        let Some((name, value)) = &self.label else {
            return SecctxHeader { size: 8, nr_secctx: 0 }.as_bytes().to_vec();
        };
        let mut bytes = [[value.len() as u32, 0].as_bytes(), &fuse::name(name), value].concat();
        let size = (size_of::<SecctxHeader>() + bytes.len()).next_multiple_of(8);
        bytes.resize(size - size_of::<SecctxHeader>(), 0);
        [SecctxHeader { size: size as u32, nr_secctx: 1 }.as_bytes(), &bytes].concat()
    }

    fn masked(&self, mode: u32) -> u32 {
        let masks = self.init_flags() & fuse::init::DONT_MASK == 0;
        if masks { mode & !self.umask } else { mode }
    }
}
