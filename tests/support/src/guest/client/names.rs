//! Names in a tree and the nodes behind them.

use zerocopy::IntoBytes;

use super::super::fuse::{self, BatchForgetIn, EntryOut, ForgetIn, ForgetOne, LinkIn, Rename2In, RenameIn, opcode};
use super::super::memory::PAGE_SIZE;
use super::{Call, Client, Result};

impl Client {
    /// LOOKUP of `name` in `parent`.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut> {
        self.call_for(Call::new(opcode::LOOKUP, parent, &[&fuse::name(name)]))
    }

    /// FORGET on the hiprio queue.
    pub fn forget(&mut self, nodeid: u64, nlookup: u64) -> Result<()> {
        let request = ForgetIn { nlookup };
        self.send_hiprio(&Call::new(opcode::FORGET, nodeid, &[request.as_bytes()]))
    }

    /// The same as Linux sends it: it is not waited for, unless 64 are on their way.
    pub fn forget_unwaited(&mut self, nodeid: u64, nlookup: u64) -> Result<()> {
        const ON_THEIR_WAY_MAX: usize = 64;
        let request = ForgetIn { nlookup };
        while let Some(first) = self.forgets.front()
            && (self.forgets.len() >= ON_THEIR_WAY_MAX || self.is_answered(first))
        {
            if let Some(first) = self.forgets.pop_front() {
                self.finish_unanswered(&first)?;
            }
        }
        let sent = self.send_unanswered(&Call::new(opcode::FORGET, nodeid, &[request.as_bytes()]));
        self.forgets.push_back(sent);
        Ok(())
    }

    /// BATCH_FORGET on the hiprio queue.
    pub fn batch_forget(&mut self, nodes: &[ForgetOne]) -> Result<()> {
        let request = BatchForgetIn { count: nodes.len() as u32, dummy: 0 };
        let args: &[&[u8]] = &[request.as_bytes(), nodes.as_bytes()];
        self.send_hiprio(&Call::new(opcode::BATCH_FORGET, 0, args))
    }

    /// READLINK.
    pub fn readlink(&mut self, nodeid: u64) -> Result<Vec<u8>> {
        let room = PAGE_SIZE as u32;
        let reply = self.call(&Call { room, ..Call::new(opcode::READLINK, nodeid, &[]) })?;
        Ok(reply.payload)
    }

    /// LINK `nodeid` as `name` in `parent`.
    pub fn link(&mut self, nodeid: u64, parent: u64, name: &str) -> Result<EntryOut> {
        let request = LinkIn { oldnodeid: nodeid };
        let args: &[&[u8]] = &[request.as_bytes(), &fuse::name(name)];
        self.call_for(Call::new(opcode::LINK, parent, args))
    }

    /// UNLINK.
    pub fn unlink(&mut self, parent: u64, name: &str) -> Result<()> {
        self.call_empty(opcode::UNLINK, parent, &[&fuse::name(name)])
    }

    /// RMDIR.
    pub fn rmdir(&mut self, parent: u64, name: &str) -> Result<()> {
        self.call_empty(opcode::RMDIR, parent, &[&fuse::name(name)])
    }

    /// RENAME.
    pub fn rename(&mut self, parent: u64, name: &str, newdir: u64, newname: &str) -> Result<()> {
        let request = RenameIn { newdir };
        let args: &[&[u8]] = &[request.as_bytes(), &fuse::name(name), &fuse::name(newname)];
        self.call_empty(opcode::RENAME, parent, args)
    }

    /// RENAME2 from `(parent, name)` to `(parent, name)` with `RENAME_*` flags.
    pub fn rename2(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<()> {
        let request = Rename2In { newdir: to.0, flags, padding: 0 };
        let args: &[&[u8]] = &[request.as_bytes(), &fuse::name(from.1), &fuse::name(to.1)];
        self.call_empty(opcode::RENAME2, from.0, args)
    }
}
