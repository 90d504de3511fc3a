//! Metadata operations through a daemon, one after the other.

use gatherfs_support::guest::client::CallError;
use gatherfs_support::guest::fuse::{self, ForgetOne};

use super::daemon::Daemon;
use super::tree::{LOAD_DIR, LOAD_FILE, NAMES_DIR, READDIR_SIZE, SMALL_DIR, SMALL_FILE_SIZE, SMALL_FILES, entry_name};
use super::work::Meta;
use crate::Failure;

/// Nodes of a BATCH_FORGET.
const FORGET_NODES: usize = 128;

/// The directories of `tree` and where the next operation takes its name.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The directory that is listed.
    pub entries_dir: u64,
    names_dir: u64,
    small_dir: u64,
    /// Names in `names_dir`.
    count: usize,
    next: usize,
    known: Vec<ForgetOne>,
    renamed: bool,
}

impl Daemon {
    /// Looks the directories of `tree::make` up.
    pub(super) fn find_names(&mut self, entries: usize) -> Result<(), Failure> {
        self.names.entries_dir = self.client.lookup(fuse::ROOT, LOAD_DIR)?.nodeid;
        self.names.names_dir = self.client.lookup(fuse::ROOT, NAMES_DIR)?.nodeid;
        self.names.small_dir = self.client.lookup(fuse::ROOT, SMALL_DIR)?.nodeid;
        self.names.count = entries;
        Ok(())
    }

    /// One metadata operation.
    pub fn meta(&mut self, meta: Meta) -> Result<(), Failure> {
        let (client, nodeid) = (&mut self.client, self.nodeid);
        match meta {
            Meta::Getattr => drop(client.getattr(nodeid, None)?),
            Meta::Lookup => drop(client.lookup(fuse::ROOT, LOAD_FILE)?),
            Meta::LookupForget => {
                let entry = client.lookup(fuse::ROOT, LOAD_FILE)?;
                client.forget_unwaited(entry.nodeid, 1)?;
            }
            Meta::LookupNew => self.look_up_new()?,
            Meta::LookupMissing => match client.lookup(fuse::ROOT, "virtual-guest.missing") {
                Err(CallError::Errno(libc::ENOENT)) => {}
                found => return Err(format!("LOOKUP of a name that is not there: {found:?}").into()),
            },
            Meta::OpenRelease => {
                let open = client.open(nodeid, libc::O_RDWR)?;
                client.release(nodeid, open.fh)?;
            }
            Meta::CreateUnlink => {
                let name = format!("virtual-guest.{}", self.name);
                let created = client.create(fuse::ROOT, &name, 0o644, libc::O_RDWR)?;
                client.release(created.entry.nodeid, created.open.fh)?;
                client.unlink(fuse::ROOT, &name)?;
                client.forget_unwaited(created.entry.nodeid, 1)?;
            }
            Meta::Rename => self.rename()?,
            Meta::Readdir => self.list(false)?,
            Meta::Readdirplus => self.list(true)?,
            Meta::SmallFile => self.read_small_file()?,
        }
        Ok(())
    }

    fn look_up_new(&mut self) -> Result<(), Failure> {
        if self.names.known.len() >= self.names.count {
            self.forget_names()?;
        }
        let name = entry_name(self.names.known.len());
        let entry = self.client.lookup(self.names.names_dir, &name)?;
        self.names.known.push(ForgetOne { nodeid: entry.nodeid, nlookup: 1 });
        Ok(())
    }

    /// Forgets the names of `Meta::LookupNew`, so that they are new again.
    pub(super) fn forget_names(&mut self) -> Result<(), Failure> {
        for batch in self.names.known.chunks(FORGET_NODES) {
            self.client.batch_forget(batch)?;
        }
        self.names.known.clear();
        Ok(())
    }

    fn rename(&mut self) -> Result<(), Failure> {
        let name = |renamed| format!("virtual-guest.{}.{}", self.name, if renamed { "b" } else { "a" });
        let (from, to) = (name(self.names.renamed), name(!self.names.renamed));
        match self.client.rename2((fuse::ROOT, &from), (fuse::ROOT, &to), 0) {
            Err(CallError::Errno(libc::ENOENT)) => drop(self.client.mknod(fuse::ROOT, &to, libc::S_IFREG | 0o644, 0)?),
            done => done?,
        }
        self.names.renamed = !self.names.renamed;
        Ok(())
    }

    /// Lists the directory of entries whole.
    fn list(&mut self, plus: bool) -> Result<(), Failure> {
        let dir = self.names.entries_dir;
        let open = self.client.opendir(dir)?;
        let mut offset = 0;
        loop {
            let list = match plus {
                true => self.client.readdirplus(dir, open.fh, offset, READDIR_SIZE)?,
                false => self.client.readdir(dir, open.fh, offset, READDIR_SIZE)?,
            };
            let Some(last) = list.last() else {
                break;
            };
            offset = last.off;
        }
        Ok(self.client.releasedir(dir, open.fh)?)
    }

    fn read_small_file(&mut self) -> Result<(), Failure> {
        let name = entry_name(self.names.next);
        self.names.next = (self.names.next + 1) % SMALL_FILES;
        let client = &mut self.client;
        let node = client.lookup(self.names.small_dir, &name)?.nodeid;
        let open = client.open(node, libc::O_RDONLY)?;
        let data = client.read(node, open.fh, 0, SMALL_FILE_SIZE)?;
        client.release(node, open.fh)?;
        match data.len() == SMALL_FILE_SIZE as usize {
            true => Ok(()),
            false => Err(format!("{}: {} bytes of {name}", self.name, data.len()).into()),
        }
    }
}
