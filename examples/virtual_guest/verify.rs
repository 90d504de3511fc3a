//! Random descriptor layouts and offsets, compared byte by byte with the host's file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use gatherfs_harness::load::Daemon;
use gatherfs_harness::load::random::Random;
use gatherfs_harness::{Failure, MIB};
use gatherfs_support::guest::client::{Client, Piece};
use gatherfs_support::guest::frontend::FIRST_REQUEST;
use gatherfs_support::guest::fuse;
use gatherfs_support::guest::memory::PAGE_SIZE;
use gatherfs_support::guest::ring::Segment;

use crate::options::Workload;

/// The file that `verify` compares.
const VERIFY_FILE: &str = "virtual-guest.verify";

/// Reads and writes random ranges through `daemon` and compares with the host's file each time.
pub fn verify(daemon: &mut Daemon, share: &Path, mode: &Workload) -> Result<(), Failure> {
    let Workload::Verify { count, seed, no_crossing } = *mode else {
        return Ok(());
    };
    let mut random = Random(seed.max(1));
    let path = share.join(VERIFY_FILE);
    let content: Vec<u8> = (0..3 * MIB + 777).map(|_| random.bits() as u8).collect();
    fs::write(&path, &content)?;
    let host = File::options().read(true).write(true).open(&path)?;
    let nodeid = daemon.client.lookup(fuse::ROOT, VERIFY_FILE)?.nodeid;
    let fh = daemon.client.open(nodeid, libc::O_RDWR)?.fh;
    let memory = daemon.guest.memory();
    let border = (!no_crossing).then(|| memory.alloc_across(1, 5000, 5000) + 5000);
    let small_queue = daemon.guest.lock(FIRST_REQUEST).options().size < 128;
    let (mut read, mut written) = (0, 0);
    for turn in 0..count {
        let size = host.metadata()?.len();
        let offset = match random.below(8) {
            0 => size - random.below(5000).min(size),
            1 => size + random.below(3),
            2 => random.below(size) & !(PAGE_SIZE - 1),
            _ => random.below(size),
        };
        let client = &mut daemon.client;
        // A small queue has no room for a long chain outside an indirect table.
        let indirect = random.below(4) > 0 || small_queue;
        daemon.guest.lock(FIRST_REQUEST).set_indirect(indirect);
        client.split_request = ragged_header(&mut random);
        client.split_reply = ragged_header(&mut random);
        let segments = ragged_payload(client, &mut random, border);
        let outcome = if random.below(2) == 0 {
            read += 1;
            verify_read(client, &host, (nodeid, fh, offset), segments)
        } else {
            written += 1;
            verify_write(client, &host, (nodeid, fh, offset), &segments, &mut random)
        };
        outcome.map_err(|e| format!("{}: turn {turn}, seed {seed}: {e}", daemon.name))?;
    }
    daemon.client.release(nodeid, fh)?;
    fs::remove_file(path)?;
    println!("{}: {read} READs and {written} WRITEs agree with the host's file", daemon.name);
    Ok(())
}

/// Random lengths of the descriptors of a header and its arguments.
fn ragged_header(random: &mut Random) -> Vec<u32> {
    (0..random.below(4)).map(|_| 1 + random.below(50) as u32).collect()
}

/// Random payload fragments: pages, odd lengths and offsets, and with `border` a buffer across the
/// border of two regions.
fn ragged_payload(client: &mut Client, random: &mut Random, border: Option<u64>) -> Vec<Segment> {
    let mut pieces: Vec<Piece> = Vec::new();
    let whole_pages = random.below(3) == 0;
    for _ in 0..1 + random.below(40) {
        let (offset, len) = if whole_pages { (0, PAGE_SIZE) } else { (random.below(PAGE_SIZE), 1 + random.below(2 * PAGE_SIZE)) };
        pieces.push(Piece { offset: offset as u32, len: len as u32 });
    }
    let mut segments = client.place(&pieces, false);
    if let Some(border) = border.filter(|_| random.below(2) == 0) {
        let (before, after) = (1 + random.below(5000), 1 + random.below(5000));
        let crossing = Segment::readable(border - before, (before + after) as u32);
        let at = random.below(segments.len() as u64 + 1) as usize;
        segments.insert(at, crossing);
    }
    segments
}

fn verify_read(client: &mut Client, host: &File, (nodeid, fh, offset): (u64, u64, u64), mut segments: Vec<Segment>) -> Result<(), Failure> {
    segments.iter_mut().for_each(|s| s.writable = true);
    let size: u32 = segments.iter().map(|s| s.len).sum();
    let untouched = vec![0xc3; size as usize];
    client.scatter(&segments, &untouched);
    let count = client.read_segments(nodeid, fh, offset, &segments)?;
    let mut expected = untouched;
    let available = read_host(host, &mut expected, offset)?;
    if count as usize != available {
        return Err(format!("READ of {size} at {offset} gave {count}, not {available}").into());
    }
    compare(&client.gather(&segments, size), &expected, offset)
}

fn verify_write(
    client: &mut Client,
    host: &File,
    (nodeid, fh, offset): (u64, u64, u64),
    segments: &[Segment],
    random: &mut Random,
) -> Result<(), Failure> {
    let size: u32 = segments.iter().map(|s| s.len).sum();
    let data: Vec<u8> = (0..size).map(|_| random.bits() as u8).collect();
    let old_size = host.metadata()?.len();
    let (start, margin) = (offset.saturating_sub(100), 200 + u64::from(size));
    let mut expected = vec![0; (offset - start + margin) as usize];
    let old = read_host(host, &mut expected, start)? as u64;
    expected[(offset - start) as usize..][..size as usize].copy_from_slice(&data);
    expected.truncate(old.max(offset - start + u64::from(size)) as usize);

    client.scatter(segments, &data);
    let count = client.write_segments(nodeid, fh, offset, segments)?;
    if count != size {
        return Err(format!("WRITE of {size} at {offset} gave {count}").into());
    }
    let new_size = host.metadata()?.len();
    if new_size != old_size.max(offset + u64::from(size)) {
        return Err(format!("WRITE of {size} at {offset} made the file {new_size} long").into());
    }
    let mut found = vec![0; expected.len() + 1];
    let len = read_host(host, &mut found, start)?;
    found.truncate(len.min(expected.len()));
    compare(&found, &expected, start)
}

/// Reads as much as the file has; returns how much.
fn read_host(host: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match host.read_at(&mut bytes[done..], offset + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

fn compare(found: &[u8], expected: &[u8], offset: u64) -> Result<(), Failure> {
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    match differs {
        Some(at) => {
            let (a, b, at) = (found[at], expected[at], offset + at as u64);
            Err(format!("byte {at} is {a:#x}, not {b:#x}").into())
        }
        None if found.len() != expected.len() => Err(format!("{} bytes instead of {}", found.len(), expected.len()).into()),
        None => Ok(()),
    }
}
