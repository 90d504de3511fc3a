//! Standard error as the place of the log. A reader that has stopped reading, such as a hung journal or a program behind a pipe, must not
//! have a guest's request wait, or the start of the next worker: a line for which there is no room is lost, and counted.

use std::io::{self, Write};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// So many bytes are written to a pipe without waiting when poll(2) finds it writable (PIPE_BUF of man pipe(7)).
const PART_LEN: usize = 4096;
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Lines that were lost since the last one that was written.
static LOST: Mutex<u64> = Mutex::new(0);

/// Writes one line to standard error, if there is room. Each write is taken for a line; none fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct StandardError;

impl StandardError {
    /// A writer.
    pub fn new() -> StandardError {
        StandardError
    }
}

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lost = LOST.lock();
        write_to(&mut io::stderr(), line, &mut lost);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_to<F: Write + std::os::fd::AsFd>(file: &mut F, line: &[u8], lost: &mut u64) {
    let has_room = |file: &F| {
        let ready = poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&NOW));
        ready.is_ok_and(|ready| ready > 0)
    };
    if *lost > 0 && has_room(file) {
        let _ = file.write_all(format!("{lost} lines of the log were lost: their reader did not read\n").as_bytes());
        *lost = 0;
    }
    for part in line.chunks(PART_LEN) {
        if !has_room(file) {
            *lost += 1;
            return;
        }
        // The reader may have gone.
        let _ = file.write_all(part);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_keeps_nobody_waiting_and_the_loss_is_told() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (mut read, mut write, mut lost) = (File::from(read), File::from(write), 0);
        for number in 0..100_000 {
            write_to(&mut write, format!("line {number}\n").as_bytes(), &mut lost);
        }
        assert!(lost > 90_000, "{lost} lost");
        let mut bytes = vec![0; 64 << 10];
        let len = read.read(&mut bytes).unwrap();
        let read_first = String::from_utf8_lossy(&bytes[..len]).into_owned();
        assert!(read_first.starts_with("line 0\nline 1\n"), "{read_first:.100}");
        write_to(&mut write, b"again\n", &mut lost);
        drop(write);
        let mut rest = String::new();
        read.read_to_string(&mut rest).unwrap();
        assert!(rest.ends_with("lines of the log were lost: their reader did not read\nagain\n") && lost == 0, "{rest:.200}");
    }

    #[test]
    fn a_long_line_is_written_whole() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (mut read, mut write, mut lost) = (File::from(read), File::from(write), 0);
        write_to(&mut write, &[b'x'; 3 * PART_LEN + 1], &mut lost);
        drop(write);
        let mut line = String::new();
        read.read_to_string(&mut line).unwrap();
        assert_eq!((line.len(), lost), (3 * PART_LEN + 1, 0));
    }
}
