//! The session: INIT, DESTROY, INTERRUPT.

use zerocopy::IntoBytes;

use super::super::fuse::{self, InitIn, InitOut, InterruptIn, opcode};
use super::{Call, Client, Result};

impl Client {
    /// INIT 7.45 with the flags Linux sends.
    pub fn init(&mut self) -> Result<InitOut> {
        self.init_with(fuse::init::LINUX)
    }

    /// INIT with these flags (`flags2` in the upper half).
    pub fn init_with(&mut self, flags: u64) -> Result<InitOut> {
        self.init_as(fuse::MINOR, flags)
    }

    /// INIT of a guest that speaks the minor version `minor`.
    pub fn init_as(&mut self, minor: u32, flags: u64) -> Result<InitOut> {
        let request = InitIn {
            major: fuse::MAJOR,
            minor,
            max_readahead: 128 << 10,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            unused: [0; 11],
        };
        self.init = InitOut::default();
        self.init = self.call_for(Call::new(opcode::INIT, 0, &[request.as_bytes()]))?;
        Ok(self.init)
    }

    /// DESTROY.
    pub fn destroy(&mut self) -> Result<()> {
        self.call_empty(opcode::DESTROY, 0, &[])
    }

    /// INTERRUPT of the request with identity `unique`, on the hiprio queue. Has no reply.
    pub fn interrupt(&mut self, unique: u64) -> Result<()> {
        let request = InterruptIn { unique };
        self.send_hiprio(&Call::new(opcode::INTERRUPT, 0, &[request.as_bytes()]))
    }
}
