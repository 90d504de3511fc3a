//! What one operation works on: a directory of its own in the share, with the guest's nodes and handles in it.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::guest::client::{CallError, Client, Result};
use crate::guest::fuse::{EntryOut, OpenOut, ROOT};
use crate::share::noise;

/// Bytes of `file` and `other`.
pub const LEN: usize = 16384;
/// Times before this one were set by an operation; later ones are those of the clock.
const SET_TIMES: i64 = 1_000_000;

/// The directory and what the guest knows of it.
pub struct World<'c> {
    pub client: &'c mut Client,
    host: PathBuf,
    /// The directory.
    pub dir: u64,
    /// `file`, with setuid, open for reading and writing.
    pub file: u64,
    pub fh: u64,
    /// `other`, open for reading and writing.
    pub other: u64,
    pub other_fh: u64,
    /// `link`, to `file`.
    pub link: u64,
    /// `sub`, with `entry` in it, which the guest does not know.
    pub sub: u64,
    pub sub_fh: u64,
    /// Nodes, each looked up once.
    looked_up: Vec<u64>,
    handles: Vec<(u64, u64)>,
    directories: Vec<(u64, u64)>,
}

impl<'c> World<'c> {
    /// Makes the directory `name` in `shared`. The guest knows what has a field here, and `empty`, and not
    /// `fresh`.
    pub fn begin(client: &'c mut Client, shared: &Path, name: &str, is_readonly: bool) -> World<'c> {
        let host = shared.join(name);
        for directory in ["", "sub", "empty"] {
            std::fs::create_dir(host.join(directory)).unwrap();
            std::fs::set_permissions(host.join(directory), PermissionsExt::from_mode(0o777)).unwrap();
        }
        for (file, mode) in [("file", 0o4755), ("other", 0o644), ("fresh", 0o644), ("sub/entry", 0o644)] {
            std::fs::write(host.join(file), noise(file.len() as u64, LEN)).unwrap();
            std::fs::set_permissions(host.join(file), PermissionsExt::from_mode(mode)).unwrap();
        }
        symlink("file", host.join("link")).unwrap();
        rustix::fs::setxattr(host.join("file"), c"user.known", b"value", rustix::fs::XattrFlags::empty()).unwrap();
        let (caller, umask) = (client.caller, client.umask);
        assert!((caller.uid, umask) == (0, 0o022) && client.label.is_none(), "an operation leaves the client as it was");
        let mut looked_up = Vec::new();
        let mut look_up = |client: &mut Client, parent, name: &str| {
            let node = client.lookup(parent, name).unwrap().nodeid;
            looked_up.push(node);
            node
        };
        let dir = look_up(client, ROOT, name);
        let [file, other, link, sub] = ["file", "other", "link", "sub"].map(|name| look_up(client, dir, name));
        // A kernel looks a name up before it removes it.
        look_up(client, dir, "empty");
        // Where the guest need not open files, it uses handle 0, and releases none.
        let handle = |opened: Result<OpenOut>| match opened {
            Err(CallError::Errno(libc::ENOSYS)) => 0,
            opened => opened.unwrap().fh,
        };
        let flags = if is_readonly { libc::O_RDONLY } else { libc::O_RDWR };
        let [fh, other_fh] = [file, other].map(|node| handle(client.open(node, flags)));
        let sub_fh = handle(client.opendir(sub));
        let is_open = |(_, fh): &(u64, u64)| *fh != 0;
        let handles = [(file, fh), (other, other_fh)].into_iter().filter(is_open).collect();
        let directories = [(sub, sub_fh)].into_iter().filter(is_open).collect();
        World { client, host, dir, file, fh, other, other_fh, link, sub, sub_fh, looked_up, handles, directories }
    }

    /// The guest has looked the entry up: it is forgotten at the end.
    pub fn knows(&mut self, entry: &EntryOut) -> String {
        self.looked_up.push(entry.nodeid);
        format!("{:o} of {} bytes", entry.attr.mode, entry.attr.size)
    }

    /// The guest has opened the file: it is released at the end.
    pub fn opened(&mut self, node: u64, fh: u64) {
        self.handles.push((node, fh));
    }

    /// As [`World::opened`], of a directory.
    pub fn opened_directory(&mut self, node: u64, fh: u64) {
        self.directories.push((node, fh));
    }

    /// The guest has released the handle.
    pub fn released(&mut self, fh: u64) {
        self.handles.retain(|(_, open)| *open != fh);
        self.directories.retain(|(_, open)| *open != fh);
    }

    /// The guest has forgotten a lookup of the node.
    pub fn forgotten(&mut self, node: u64) {
        let at = self.looked_up.iter().position(|known| *known == node).unwrap();
        self.looked_up.remove(at);
    }

    /// A path on the host.
    pub fn path(&self) -> &Path {
        &self.host
    }

    /// Releases and forgets all, and removes the directory.
    pub fn end(self) -> Result<()> {
        self.handles.iter().try_for_each(|(node, fh)| self.client.release(*node, *fh))?;
        self.directories.iter().try_for_each(|(node, fh)| self.client.releasedir(*node, *fh))?;
        self.looked_up.iter().try_for_each(|node| self.client.forget(*node, 1))?;
        std::fs::remove_dir_all(&self.host).unwrap();
        Ok(())
    }
}

/// A file of a tree: mode, owner, group, links, a time that was set, attributes, and contents or target.
pub type Entry = (u32, u32, u32, u64, Option<(i64, i64)>, BTreeMap<Vec<u8>, Vec<u8>>, Vec<u8>);

/// A tree.
pub type Tree = BTreeMap<PathBuf, Entry>;

/// Every file below `directory`, and that itself.
pub fn tree(directory: &Path) -> Tree {
    let mut found = BTreeMap::new();
    let mut below = vec![directory.to_owned()];
    while let Some(path) = below.pop() {
        let st = std::fs::symlink_metadata(&path).unwrap();
        let contents = match st.mode() & libc::S_IFMT {
            libc::S_IFREG => std::fs::read(&path).unwrap(),
            libc::S_IFLNK => std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_owned(),
            _ => Vec::new(),
        };
        if st.is_dir() {
            below.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let set = (st.mtime() < SET_TIMES).then(|| (st.mtime(), st.mtime_nsec()));
        let name = path.strip_prefix(directory).unwrap().to_owned();
        found.insert(name, (st.mode(), st.uid(), st.gid(), st.nlink(), set, attributes(&path), contents));
    }
    found
}

fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = [0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    let value = |name: &[u8]| {
        let mut value = [0; 256];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value[..len].to_owned()
    };
    names.map(|name| (name.to_owned(), value(name))).collect()
}
