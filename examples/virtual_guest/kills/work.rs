//! What the lanes do: requests whose answers are known, so that one which is executed twice, never, or on something else is seen.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use gatherfs_harness::Failure;
use gatherfs_harness::load::random::Random;
use gatherfs_support::guest::client::{Call, Client};
use gatherfs_support::guest::fuse::{
    self, AttrOut, CreateIn, CreateOut, EntryOut, GetattrIn, LinkIn, ReadIn, ReleaseIn, Rename2In, SetattrIn, WriteIn, WriteOut, flag,
    opcode,
};
use gatherfs_support::guest::memory::PAGE_SIZE;
use gatherfs_support::guest::ring::Segment;
use zerocopy::IntoBytes;

use super::lanes::{Lane, Queue};

/// Pages of a lane's part of the data file.
const PAGES: usize = 32;
/// Pages of a READ or WRITE.
const SIZES: [usize; 6] = [1, 1, 1, 1, 4, 16];
/// A file that is appended to is emptied beyond so many bytes.
const APPENDED_MAX: usize = 256 << 10;
/// The longest record that is appended.
const RECORD_MAX: u64 = 4000;
/// Files of a queue's directory that nothing changes.
const FIXED: usize = 20;
/// Bytes of a fixed file.
const FIXED_SIZE: usize = 100;
/// The buffer of a READDIR, which has room for all entries.
const LISTING_PAGES: usize = 8;
/// The most descriptors of a request: one for each page, two headers and their arguments.
pub const DESCRIPTORS_MAX: usize = 16 + 4;

/// What the lanes of a queue work on: a directory of their own.
pub struct Place {
    node: u64,
    /// The open directory.
    handle: u64,
    data: OpenFile,
    /// The directory on the host.
    host: PathBuf,
}

/// A file that is open for as long as the lanes run.
#[derive(Clone, Copy)]
struct OpenFile {
    node: u64,
    fh: u64,
    flags: u32,
}

impl Place {
    /// Makes the directory `name` in `parent`, which is `host`, for `lanes` lanes.
    pub fn make(
        client: &mut Client,
        (parent, host): (u64, &std::path::Path),
        name: &str,
        lanes: usize,
        direct: bool,
    ) -> Result<Self, Failure> {
        let host = host.join(name);
        let node = client.mkdir(parent, name, 0o755)?.nodeid;
        for index in 0..FIXED {
            fs::write(host.join(fixed_name(index)), [b'f'; FIXED_SIZE])?;
        }
        let flags = libc::O_RDWR | if direct { libc::O_DIRECT } else { 0 };
        let made = client.create(node, "data", 0o644, flags)?;
        client.truncate(made.entry.nodeid, None, (lanes * PAGES) as u64 * PAGE_SIZE)?;
        let handle = client.opendir(node)?.fh;
        let data = OpenFile { node: made.entry.nodeid, fh: made.open.fh, flags: flags as u32 };
        Ok(Self { node, handle, data, host })
    }

    /// The lanes of a queue: five of eight READ and WRITE, one each makes and removes names, appends, and reads attributes and names.
    pub fn lanes<'a>(&'a self, queue: &'a Queue<'_>, depth: usize, seed: u64) -> Vec<Lane<'a>> {
        let lane = |index: usize| -> Lane<'a> {
            let random = Random(seed + index as u64 + 1);
            match index % 8 {
                5 => Box::pin(self.names(queue, index)),
                6 => Box::pin(self.appends(queue, index, random)),
                7 => Box::pin(self.looks(queue, random)),
                _ => Box::pin(self.blocks(queue, index, random)),
            }
        };
        (0..depth).map(lane).collect()
    }

    /// Releases what is open, and compares the directory with what has to be in it.
    pub fn end(self, client: &mut Client) -> Result<(), Failure> {
        client.release(self.data.node, self.data.fh)?;
        let (mut seen, mut offset) = (Vec::new(), 0);
        loop {
            let entries = client.readdir(self.node, self.handle, offset, 4096)?;
            let Some(last) = entries.last() else { break };
            offset = last.off;
            seen.extend(entries.into_iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
        }
        client.releasedir(self.node, self.handle)?;
        seen.retain(|name| name != "." && name != "..");
        seen.sort();
        let mut there = Vec::new();
        for entry in fs::read_dir(&self.host)? {
            there.push(entry?.file_name().to_string_lossy().into_owned());
        }
        there.sort();
        let mut expected: Vec<String> = (0..FIXED).map(fixed_name).collect();
        expected.push("data".into());
        expected.sort();
        match seen == expected && there == expected {
            true => Ok(()),
            false => Err(format!("{} has {there:?}, of which the guest sees {seen:?}; expected {expected:?}", self.host.display()).into()),
        }
    }

    /// READs and WRITEs on the pages of lane `lane`. Each page has the contents of its last WRITE.
    async fn blocks(&self, queue: &Queue<'_>, lane: usize, mut random: Random) -> Result<(), Failure> {
        let buffer = queue.pages(PAGES);
        let begin = (lane * PAGES) as u64 * PAGE_SIZE;
        let mut contents = vec![0u8; PAGES * PAGE_SIZE as usize];
        let OpenFile { node, fh, flags } = self.data;
        let page = PAGE_SIZE as usize;
        while queue.goes_on() {
            let count = SIZES[random.below(SIZES.len() as u64) as usize];
            let first = random.below((PAGES - count + 1) as u64) as usize;
            let (offset, size) = (begin + (first * page) as u64, (count * page) as u32);
            let known = &mut contents[first * page..][..count * page];
            if random.below(2) == 0 {
                known.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.bits().to_le_bytes()));
                queue.scatter(&buffer[..count], known);
                let request = WriteIn { fh, offset, size, flags, ..WriteIn::default() };
                write(queue, node, &request, &buffer[..count]).await?;
            } else {
                queue.scatter(&buffer[..count], &vec![0xc3; size as usize]);
                let segments: Vec<_> = buffer[..count].iter().map(|s| Segment { writable: true, ..*s }).collect();
                let request = ReadIn { fh, offset, size, flags, ..ReadIn::default() };
                let args: &[&[u8]] = &[request.as_bytes()];
                let got = queue.read("READ", Call { data_out: &segments, ..Call::new(opcode::READ, node, args) }).await?;
                compare("READ", offset, &queue.gather(&segments, got), known)?;
            }
        }
        let mut there = vec![0; contents.len()];
        File::open(self.host.join("data"))?.read_exact_at(&mut there, begin)?;
        compare("the host's file", begin, &there, &contents)
    }

    /// Records that are appended to a file, once each.
    async fn appends(&self, queue: &Queue<'_>, lane: usize, mut random: Random) -> Result<(), Failure> {
        let (name, flags) = (format!("appended-{lane}"), (libc::O_RDWR | libc::O_APPEND) as u32);
        let buffer = queue.pages(1);
        let made = self.create(queue, &name, flags).await?;
        let (node, fh) = (made.entry.nodeid, made.open.fh);
        let mut contents = Vec::new();
        while queue.goes_on() {
            let record: Vec<u8> = (0..1 + random.below(RECORD_MAX)).map(|_| random.bits() as u8).collect();
            queue.scatter(&buffer, &record);
            let request = WriteIn { fh, offset: contents.len() as u64, size: record.len() as u32, flags, ..WriteIn::default() };
            write(queue, node, &request, &[Segment { len: request.size, ..buffer[0] }]).await?;
            contents.extend_from_slice(&record);
            if contents.len() > APPENDED_MAX {
                self.check_appended(queue, node, &name, &contents).await?;
                contents.clear();
                let request = SetattrIn { valid: flag::FATTR_SIZE | flag::FATTR_FH, fh, ..SetattrIn::default() };
                let out: AttrOut = queue.ask("SETATTR", Call::new(opcode::SETATTR, node, &[request.as_bytes()])).await?;
                same("size after SETATTR", out.attr.size, 0)?;
            }
        }
        self.check_appended(queue, node, &name, &contents).await?;
        let args: &[&[u8]] = &[&fuse::name(&name)];
        queue.succeed("UNLINK", Call::new(opcode::UNLINK, self.node, args)).await?;
        release(queue, node, fh, flags).await?;
        queue.forget(node, 1)
    }

    async fn check_appended(&self, queue: &Queue<'_>, node: u64, name: &str, contents: &[u8]) -> Result<(), Failure> {
        let out: AttrOut = queue.ask("GETATTR", Call::new(opcode::GETATTR, node, &[GetattrIn::default().as_bytes()])).await?;
        same("size of what was appended", out.attr.size, contents.len() as u64)?;
        compare(name, 0, &fs::read(self.host.join(name))?, contents)
    }

    /// A file that is made, renamed, linked, unlinked and forgotten, again and again.
    async fn names(&self, queue: &Queue<'_>, lane: usize) -> Result<(), Failure> {
        let buffer = queue.pages(1);
        let flags = libc::O_RDWR as u32;
        let mut turn = 0u64;
        while queue.goes_on() {
            turn += 1;
            let [old, new, link] = ["made", "renamed", "linked"].map(|what| fuse::name(&format!("{what}-{lane}-{turn}")));
            let made = self.create(queue, &format!("made-{lane}-{turn}"), flags).await?;
            let (node, fh) = (made.entry.nodeid, made.open.fh);
            queue.scatter(&buffer, turn.as_bytes());
            let request = WriteIn { fh, size: 8, flags, ..WriteIn::default() };
            write(queue, node, &request, &[Segment { len: 8, ..buffer[0] }]).await?;
            let request = Rename2In { newdir: self.node, flags: libc::RENAME_NOREPLACE, padding: 0 };
            let args: &[&[u8]] = &[request.as_bytes(), &old, &new];
            queue.succeed("RENAME2", Call::new(opcode::RENAME2, self.node, args)).await?;
            queue.fail("LOOKUP of the old name", libc::ENOENT, self.lookup_call(&[&old])).await?;
            let entry: EntryOut = queue.ask("LOOKUP of the new name", self.lookup_call(&[&new])).await?;
            same("node of the new name", entry.nodeid, node)?;
            let request = LinkIn { oldnodeid: node };
            let args: &[&[u8]] = &[request.as_bytes(), &link];
            let linked: EntryOut = queue.ask("LINK", Call::new(opcode::LINK, self.node, args)).await?;
            same("node of the link", linked.nodeid, node)?;
            same("links", linked.attr.nlink.into(), 2)?;
            same("size", linked.attr.size, 8)?;
            queue.succeed("UNLINK of the link", Call::new(opcode::UNLINK, self.node, &[&link])).await?;
            queue.succeed("UNLINK", Call::new(opcode::UNLINK, self.node, &[&new])).await?;
            let request = GetattrIn { getattr_flags: flag::GETATTR_FH, dummy: 0, fh };
            let out: AttrOut = queue.ask("GETATTR of an open file", Call::new(opcode::GETATTR, node, &[request.as_bytes()])).await?;
            same("links of a file without a name", out.attr.nlink.into(), 0)?;
            release(queue, node, fh, flags).await?;
            // One each for CREATE, LOOKUP and LINK.
            queue.forget(node, 3)?;
        }
        Ok(())
    }

    /// LOOKUP, GETATTR and READDIR of what nothing changes.
    async fn looks(&self, queue: &Queue<'_>, mut random: Random) -> Result<(), Failure> {
        let listing: Vec<_> = queue.pages(LISTING_PAGES).into_iter().map(|s| Segment { writable: true, ..s }).collect();
        while queue.goes_on() {
            let name = fuse::name(&fixed_name(random.below(FIXED as u64) as usize));
            let entry: EntryOut = queue.ask("LOOKUP", self.lookup_call(&[&name])).await?;
            let out: AttrOut = queue.ask("GETATTR", Call::new(opcode::GETATTR, entry.nodeid, &[GetattrIn::default().as_bytes()])).await?;
            same("size of a fixed file", out.attr.size, FIXED_SIZE as u64)?;
            same("inode number of a fixed file", out.attr.ino, entry.attr.ino)?;
            queue.forget(entry.nodeid, 1)?;
            if random.below(8) == 0 {
                self.list(queue, &listing).await?;
            }
        }
        Ok(())
    }

    /// READDIR of all entries. The fixed ones are all there, each once; others come and go meanwhile.
    async fn list(&self, queue: &Queue<'_>, buffer: &[Segment]) -> Result<(), Failure> {
        let (mut offset, mut fixed) = (0, 0);
        loop {
            let request = ReadIn { fh: self.handle, offset, size: (LISTING_PAGES as u64 * PAGE_SIZE) as u32, ..ReadIn::default() };
            let args: &[&[u8]] = &[request.as_bytes()];
            let got = queue.read("READDIR", Call { data_out: buffer, ..Call::new(opcode::READDIR, self.node, args) }).await?;
            let entries = fuse::dirents(&queue.gather(buffer, got), false).ok_or("READDIR: an entry is cut off")?;
            let Some(last) = entries.last() else { break };
            offset = last.off;
            fixed += entries.iter().filter(|entry| entry.name.starts_with(b"fixed-")).count();
        }
        same("fixed files in READDIR", fixed as u64, FIXED as u64)
    }

    fn lookup_call<'c>(&self, args: &'c [&'c [u8]]) -> Call<'c> {
        Call::new(opcode::LOOKUP, self.node, args)
    }

    async fn create(&self, queue: &Queue<'_>, name: &str, flags: u32) -> Result<CreateOut, Failure> {
        let request = CreateIn { flags: flags | libc::O_EXCL as u32, mode: libc::S_IFREG | 0o644, ..CreateIn::default() };
        let name = fuse::name(name);
        let args: &[&[u8]] = &[request.as_bytes(), &name];
        queue.ask("CREATE", Call::new(opcode::CREATE, self.node, args)).await
    }
}

fn fixed_name(index: usize) -> String {
    format!("fixed-{index:02}")
}

async fn write(queue: &Queue<'_>, node: u64, request: &WriteIn, data: &[Segment]) -> Result<(), Failure> {
    let args: &[&[u8]] = &[request.as_bytes()];
    let out: WriteOut = queue.ask("WRITE", Call { data_in: data, ..Call::new(opcode::WRITE, node, args) }).await?;
    same("bytes of a WRITE", out.size.into(), request.size.into())
}

async fn release(queue: &Queue<'_>, node: u64, fh: u64, flags: u32) -> Result<(), Failure> {
    let request = ReleaseIn { fh, flags, release_flags: 0, lock_owner: 0 };
    queue.succeed("RELEASE", Call::new(opcode::RELEASE, node, &[request.as_bytes()])).await.map(|_| ())
}

fn same(what: &str, found: u64, expected: u64) -> Result<(), Failure> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found} instead of {expected}").into()) }
}

/// Compares bytes at `offset` of `what`.
fn compare(what: &str, offset: u64, found: &[u8], expected: &[u8]) -> Result<(), Failure> {
    if let Some(at) = found.iter().zip(expected).position(|(found, expected)| found != expected) {
        return Err(format!("{what}: byte {} is {:#x} instead of {:#x}", offset + at as u64, found[at], expected[at]).into());
    }
    same(&format!("{what}: bytes from {offset} on"), found.len() as u64, expected.len() as u64)
}
