//! Attributes, plain and extended, and what a file system tells about itself.

use zerocopy::IntoBytes;

use super::super::fuse::{
    self, AccessIn, AttrOut, GetattrIn, GetxattrIn, GetxattrOut, Kstatfs, SetattrIn, SetxattrIn, StatxIn, StatxOut, flag, opcode,
};
use super::{Call, Client, Result};

impl Client {
    /// GETATTR, by file handle when there is one.
    pub fn getattr(&mut self, nodeid: u64, fh: Option<u64>) -> Result<AttrOut> {
        let getattr_flags = if fh.is_some() { flag::GETATTR_FH } else { 0 };
        let request = GetattrIn { getattr_flags, dummy: 0, fh: fh.unwrap_or(0) };
        self.call_for(Call::new(opcode::GETATTR, nodeid, &[request.as_bytes()]))
    }

    /// SETATTR of what `request.valid` names.
    pub fn setattr(&mut self, nodeid: u64, request: &SetattrIn) -> Result<AttrOut> {
        self.call_for(Call::new(opcode::SETATTR, nodeid, &[request.as_bytes()]))
    }

    /// SETATTR of the size.
    pub fn truncate(&mut self, nodeid: u64, fh: Option<u64>, size: u64) -> Result<AttrOut> {
        let by_handle = if fh.is_some() { flag::FATTR_FH } else { 0 };
        let valid = flag::FATTR_SIZE | by_handle;
        let request = SetattrIn { valid, fh: fh.unwrap_or(0), size, ..SetattrIn::default() };
        self.setattr(nodeid, &request)
    }

    /// STATX with the `STATX_*` mask of statx(2).
    pub fn statx(&mut self, nodeid: u64, fh: Option<u64>, sx_mask: u32) -> Result<StatxOut> {
        let getattr_flags = if fh.is_some() { flag::GETATTR_FH } else { 0 };
        let fh = fh.unwrap_or(0);
        let request = StatxIn { getattr_flags, reserved: 0, fh, sx_flags: 0, sx_mask };
        self.call_for(Call::new(opcode::STATX, nodeid, &[request.as_bytes()]))
    }

    /// ACCESS.
    pub fn access(&mut self, nodeid: u64, mask: u32) -> Result<()> {
        let request = AccessIn { mask, padding: 0 };
        self.call_empty(opcode::ACCESS, nodeid, &[request.as_bytes()])
    }

    /// STATFS.
    pub fn statfs(&mut self, nodeid: u64) -> Result<Kstatfs> {
        self.call_for(Call::new(opcode::STATFS, nodeid, &[]))
    }

    /// SETXATTR in the form agreed on (SETXATTR_EXT or the short one).
    pub fn setxattr(&mut self, nodeid: u64, name: &str, value: &[u8], flags: u32) -> Result<()> {
        let setxattr_flags = self.setxattr_flags;
        let request = SetxattrIn { size: value.len() as u32, flags, setxattr_flags, padding: 0 };
        let long = self.init_flags() & fuse::init::SETXATTR_EXT != 0;
        let request = &request.as_bytes()[..if long { 16 } else { 8 }];
        self.call_empty(opcode::SETXATTR, nodeid, &[request, &fuse::name(name), value])
    }

    /// GETXATTR into `size` bytes.
    pub fn getxattr(&mut self, nodeid: u64, name: &str, size: u32) -> Result<Vec<u8>> {
        let request = GetxattrIn { size, padding: 0 };
        let args: &[&[u8]] = &[request.as_bytes(), &fuse::name(name)];
        let call = Call { room: size, ..Call::new(opcode::GETXATTR, nodeid, args) };
        Ok(self.call(&call)?.payload)
    }

    /// GETXATTR of the size only.
    pub fn getxattr_size(&mut self, nodeid: u64, name: &str) -> Result<u32> {
        let request = GetxattrIn::default();
        let args: &[&[u8]] = &[request.as_bytes(), &fuse::name(name)];
        let reply: GetxattrOut = self.call_for(Call::new(opcode::GETXATTR, nodeid, args))?;
        Ok(reply.size)
    }

    /// LISTXATTR into `size` bytes: zero-terminated names.
    pub fn listxattr(&mut self, nodeid: u64, size: u32) -> Result<Vec<u8>> {
        let request = GetxattrIn { size, padding: 0 };
        let args: &[&[u8]] = &[request.as_bytes()];
        let call = Call { room: size, ..Call::new(opcode::LISTXATTR, nodeid, args) };
        Ok(self.call(&call)?.payload)
    }

    /// LISTXATTR of the size only.
    pub fn listxattr_size(&mut self, nodeid: u64) -> Result<u32> {
        let request = GetxattrIn::default();
        let args: &[&[u8]] = &[request.as_bytes()];
        let reply: GetxattrOut = self.call_for(Call::new(opcode::LISTXATTR, nodeid, args))?;
        Ok(reply.size)
    }

    /// REMOVEXATTR.
    pub fn removexattr(&mut self, nodeid: u64, name: &str) -> Result<()> {
        self.call_empty(opcode::REMOVEXATTR, nodeid, &[&fuse::name(name)])
    }
}
