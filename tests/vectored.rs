//! READ and WRITE of many segments: every byte in its place, and one host call for each request.

use std::os::unix::fs::FileExt;

use gatherfs_support::daemon::Metrics;
use gatherfs_support::guest::client::{Piece, pages};
use gatherfs_support::guest::frontend::GuestOptions;
use gatherfs_support::guest::ring::Segment;
use gatherfs_support::share::{self, File, Share, noise};

/// Segments of the requests that must take one call; 1020 is what a queue of 1024 holds.
const COUNTS: [usize; 4] = [1, 32, 256, 1020];

/// A small random number generator, for shapes.
struct Shapes(u64);

impl Shapes {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    /// `count` pieces of any alignment and length, some of them longer than a page. No two adjoin.
    fn ragged(&mut self, count: usize) -> Vec<Piece> {
        let mut piece = |_| match self.below(10) {
            0 => Piece { offset: self.below(4096) as u32, len: 1 },
            1 => Piece { offset: self.below(4096) as u32, len: 4097 + self.below(9000) as u32 },
            _ => Piece { offset: self.below(4000) as u32, len: 1 + self.below(4000) as u32 },
        };
        let mut pieces: Vec<Piece> = (0..count).map(&mut piece).collect();
        // One that ends at the end of a page would be one range with a next one that starts a page.
        for p in pieces.iter_mut().filter(|p| (p.offset + p.len).is_multiple_of(4096)) {
            p.len += 1;
        }
        pieces
    }
}

fn len_of(pieces: &[Piece]) -> usize {
    pieces.iter().map(|p| p.len as usize).sum()
}

/// What the daemon counted while `act` ran.
struct Calls {
    reads: u64,
    writes: u64,
    read_requests: u64,
    write_requests: u64,
}

fn counted<R>(share: &mut Share, act: impl FnOnce(&mut Share) -> R) -> (R, Calls) {
    let before = share.metrics();
    let result = act(share);
    let after = share.metrics();
    let more = |of: fn(&Metrics, &str) -> u64, name: &str| of(&after, name) - of(&before, name);
    let calls = Calls {
        reads: more(Metrics::get, "host_reads"),
        writes: more(Metrics::get, "host_writes"),
        read_requests: more(Metrics::requests, "READ"),
        write_requests: more(Metrics::requests, "WRITE"),
    };
    (result, calls)
}

fn host_bytes(share: &Share, name: &str, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    std::fs::File::open(share.path(name)).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn write(share: &mut Share, file: File, offset: u64, data: &[u8], pieces: &[Piece]) -> u32 {
    share.client().write_pieces(file.node, (file.fh, offset), data, pieces).unwrap()
}

fn read(share: &mut Share, file: File, offset: u64, pieces: &[Piece]) -> Vec<u8> {
    share.client().read_pieces(file.node, file.fh, offset, pieces).unwrap()
}

/// Shapes of `count` segments: whole pages, and ragged ones.
fn shapes(count: usize) -> [Vec<Piece>; 2] {
    [pages(4096 * count as u32), Shapes(count as u64).ragged(count)]
}

#[test]
fn a_write_of_any_number_of_segments_is_one_host_call_and_lands_byte_for_byte() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let file = share.make("file");
        for count in COUNTS {
            for pieces in shapes(count) {
                for offset in [0, 4096, 12_345] {
                    let data = noise(offset + count as u64, len_of(&pieces));

                    let (written, calls) = counted(&mut share, |s| write(s, file, offset, &data, &pieces));

                    assert_eq!(written as usize, data.len());
                    assert!(host_bytes(&share, "file", offset, data.len()) == data, "{count} segments at {offset}");
                    assert_eq!((calls.write_requests, calls.writes, calls.reads), (1, 1, 0), "{count} segments at {offset}");
                }
            }
        }
    }
}

#[test]
fn a_read_of_any_number_of_segments_is_one_host_call_also_at_the_end_of_the_file() {
    // A file that ends with a sector takes a call more, as an error of the disk could be what ends the READ there.
    for (mut share, file_len, more) in [(Share::new(), (5 << 20) + 100, 0), (Share::on_disk(&[]), 5 << 20, 1)] {
        let content = noise(1, file_len);
        share.put("file", &content);
        let file = share.open("file", libc::O_RDONLY);
        for count in COUNTS {
            for pieces in shapes(count) {
                let len = len_of(&pieces);
                // From the start, from an odd place, half behind the end, one byte before it, at it, behind it.
                let end = content.len();
                for offset in [0, 12_345, end - len / 2, end - 1, end, end + 4096] {
                    let expected = &content[offset.min(end)..(offset + len).min(end).max(offset.min(end))];

                    let (bytes, calls) = counted(&mut share, |s| read(s, file, offset as u64, &pieces));

                    assert_eq!(bytes.len(), expected.len(), "{count} segments at {offset}");
                    assert!(bytes == expected, "{count} segments at {offset}");
                    let reads = if (1..len).contains(&bytes.len()) { 1 + more } else { 1 };
                    assert_eq!((calls.read_requests, calls.reads, calls.writes), (1, reads, 0), "{count} segments at {offset}");
                }
            }
        }
    }
}

#[test]
fn a_short_read_leaves_the_segments_behind_it_untouched() {
    let mut share = Share::new();
    share.put("file", &noise(2, 5000));
    let file = share.open("file", libc::O_RDONLY);
    let pieces = Shapes(3).ragged(64);
    let segments = share.client().place(&pieces, true);
    let len = len_of(&pieces);
    assert!(len > 6000);
    share.client().scatter(&segments, &vec![0xa5; len]);

    let count = share.client().read_segments(file.node, file.fh, 0, &segments).unwrap();

    let bytes = share.client().gather(&segments, len as u32);
    assert_eq!(count, 5000);
    assert!(bytes[..5000] == share.contents("file"));
    assert!(bytes[5000..].iter().all(|b| *b == 0xa5));
}

#[test]
fn above_what_one_call_takes_there_are_as_few_calls_as_possible() {
    let guest = GuestOptions { queue_size: 32_768, ..GuestOptions::default() };
    let mut share = Share::start(share::Setup { guest, ..share::Setup::default() });
    for (count, calls_min) in [(1023, 1), (1024, 1), (1025, 2), (2048, 2), (2049, 3), (3000, 3)] {
        let name = format!("file{count}");
        let file = share.make(&name);
        let pieces = Shapes(count).ragged(count as usize);
        let data = noise(count, len_of(&pieces));

        let (written, calls) = counted(&mut share, |s| write(s, file, 777, &data, &pieces));
        assert_eq!((written as usize, calls.writes), (data.len(), calls_min), "{count} segments");
        assert!(host_bytes(&share, &name, 777, data.len()) == data);

        let (bytes, calls) = counted(&mut share, |s| read(s, file, 777, &pieces));
        assert!(bytes == data);
        assert_eq!(calls.reads, calls_min, "{count} segments");
    }
}

#[test]
fn a_read_of_several_calls_stops_at_the_end_of_the_file() {
    let guest = GuestOptions { queue_size: 32_768, ..GuestOptions::default() };
    let mut share = Share::start(share::Setup { guest, ..share::Setup::default() });
    let pieces = Shapes(9).ragged(3000);
    let content = noise(9, len_of(&pieces[..1500]));
    share.put("file", &content);
    let file = share.open("file", libc::O_RDONLY);

    let (bytes, calls) = counted(&mut share, |s| read(s, file, 0, &pieces));

    assert!(bytes == content);
    assert_eq!(calls.reads, 2, "the second of three came back short");
}

#[test]
fn random_shapes_at_random_offsets_agree_with_the_host_file() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let file = share.make("file");
        let mut model = Vec::new();
        let mut shapes = Shapes(20_261_122);
        for turn in 0..60 {
            let count = 1 + shapes.below(1020) as usize;
            let pieces = shapes.ragged(count);
            let offset = shapes.below(3 << 20) as usize;
            let len = len_of(&pieces);
            if turn % 2 == 0 {
                let data = noise(turn, len);
                assert_eq!(write(&mut share, file, offset as u64, &data, &pieces) as usize, len);
                model.resize(model.len().max(offset + len), 0);
                model[offset..offset + len].copy_from_slice(&data);
            } else {
                let expected = &model[offset.min(model.len())..(offset + len).min(model.len())];
                assert!(read(&mut share, file, offset as u64, &pieces) == expected, "turn {turn}: {count} segments at {offset}");
            }
        }
        assert!(share.contents("file") == model);
    }
}

#[test]
fn sparse_files_read_as_zeroes_and_offsets_beyond_4_gib_are_exact() {
    for mut share in [Share::new(), Share::on_disk(&[])] {
        let file = share.make("file");
        let pieces = Shapes(5).ragged(32);
        let len = len_of(&pieces);
        for offset in [(1 << 32) - 100, (1 << 32) + 12_345, 1 << 40] {
            let data = noise(offset, len);
            write(&mut share, file, offset, &data, &pieces);

            assert!(host_bytes(&share, "file", offset, len) == data, "at {offset:#x}");
            assert!(read(&mut share, file, offset, &pieces) == data, "at {offset:#x}");
        }
        assert!(read(&mut share, file, 1 << 31, &pieces) == vec![0; len], "a hole");
        assert!(read(&mut share, file, (1 << 40) + len as u64 - 10, &pieces) == noise(1 << 40, len)[len - 10..]);
        assert_eq!(share.client().getattr(file.node, None).unwrap().attr.size, (1 << 40) + len as u64);
        assert!(share.client().getattr(file.node, None).unwrap().attr.blocks < 10_000, "still sparse");
    }
}

#[test]
fn segments_across_a_border_of_guest_memory_are_still_one_host_call() {
    let mib = 1 << 20;
    let guest = GuestOptions { layout: vec![(0, 32 * mib), (32 * mib, 32 * mib)], ..GuestOptions::default() };
    let mut share = Share::start(share::Setup { guest, ..share::Setup::default() });
    let file = share.make("file");
    let border = share.client().guest().memory().alloc_across(0, 10_000, 20_000);
    let segment = |writable| Segment { addr: border, len: 30_000, writable };
    let data = noise(8, 30_000);

    share.client().scatter(&[segment(false)], &data);
    let (written, calls) = counted(&mut share, |s| s.client().write_segments(file.node, file.fh, 5, &[segment(false)]).unwrap());
    assert_eq!((written, calls.writes), (30_000, 1));
    assert!(host_bytes(&share, "file", 5, 30_000) == data);

    share.client().scatter(&[segment(true)], &vec![0; 30_000]);
    let (count, calls) = counted(&mut share, |s| s.client().read_segments(file.node, file.fh, 5, &[segment(true)]).unwrap());
    assert_eq!((count, calls.reads), (30_000, 1));
    assert!(share.client().gather(&[segment(true)], 30_000) == data);
}

#[test]
fn header_and_arguments_may_be_cut_anywhere() {
    let mut share = Share::new();
    let file = share.make("file");
    let pieces = Shapes(11).ragged(16);
    let data = noise(11, len_of(&pieces));
    for (request, reply) in [(vec![], vec![]), (vec![1, 1, 38, 7], vec![3, 5]), (vec![80], vec![16]), (vec![20, 40], vec![15])] {
        share.client().split_request = request.clone();
        share.client().split_reply = reply.clone();

        assert_eq!(write(&mut share, file, 0, &data, &pieces) as usize, data.len(), "{request:?} {reply:?}");
        assert!(read(&mut share, file, 0, &pieces) == data, "{request:?} {reply:?}");
        assert!(share.contents("file") == data);
        share.client().truncate(file.node, None, 0).unwrap();
    }
}
