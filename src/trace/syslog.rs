//! Messages to the syslog daemon of this host, in the format of syslog(3): one datagram for each line, with priority, name and
//! process id. The daemon adds the time.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// LOG_USER of syslog(3), as virtiofsd.
const FACILITY: u8 = 1;
const NAME: &str = "gatherfsd";

/// A connection to the syslog daemon, made before the sandbox, in which its socket is not accessible.
#[derive(Debug)]
pub struct Syslog {
    socket: UnixDatagram,
    /// The process id outside the sandbox, whose pid namespace may give another one.
    pid: u32,
}

impl Syslog {
    /// Connects to the daemon at `path`. ENOENT or ECONNREFUSED where none listens, EACCES, and EPROTOTYPE for a stream socket.
    pub fn connect(path: &Path) -> io::Result<Syslog> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // A daemon that does not read its socket must not delay requests.
        socket.set_nonblocking(true)?;
        Ok(Syslog { socket, pid: std::process::id() })
    }

    /// Over a connected socket that does not block, for a process that is known there as `pid`.
    pub fn of(socket: OwnedFd, pid: u32) -> Syslog {
        Syslog { socket: socket.into(), pid }
    }

    /// The number of the socket's descriptor, and the process id.
    pub fn socket(&self) -> (RawFd, u32) {
        (self.socket.as_raw_fd(), self.pid)
    }
}

/// A line to be sent.
#[derive(Debug)]
pub struct Line<'s> {
    syslog: &'s Syslog,
    severity: u8,
}

impl Write for Line<'_> {
    /// Sends a whole line. It is dropped where the daemon's socket is full, and written to standard error where the daemon has
    /// closed it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let priority = FACILITY << 3 | self.severity;
        let mut message = format!("<{priority}>{NAME}[{}]: ", self.syslog.pid).into_bytes();
        message.extend_from_slice(bytes.trim_ascii_end());
        match self.syslog.socket.send(&message) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'s> MakeWriter<'s> for Syslog {
    type Writer = Line<'s>;

    fn make_writer(&'s self) -> Line<'s> {
        Line { syslog: self, severity: severity(Level::INFO) }
    }

    fn make_writer_for(&'s self, meta: &Metadata<'_>) -> Line<'s> {
        Line { syslog: self, severity: severity(*meta.level()) }
    }
}

/// The severity of syslog(3) of a level.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_datagram_with_priority_name_and_process_id() {
        let path = std::env::temp_dir().join(format!("gfs-syslog-{}", std::process::id()));
        let daemon = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut received = [0; 200];
        for (level, priority) in [(Level::ERROR, 11), (Level::WARN, 12), (Level::INFO, 14), (Level::DEBUG, 15), (Level::TRACE, 15)] {
            let mut line = Line { syslog: &syslog, severity: severity(level) };
            line.write_all(b"the disk is full\n").unwrap();
            let len = daemon.recv(&mut received).unwrap();
            let expected = format!("<{priority}>gatherfsd[{}]: the disk is full", std::process::id());
            assert_eq!(String::from_utf8_lossy(&received[..len]), expected);
        }
    }

    #[test]
    fn a_daemon_that_does_not_read_delays_nothing() {
        let path = std::env::temp_dir().join(format!("gfs-syslog-busy-{}", std::process::id()));
        let _daemon = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for _ in 0..10_000 {
            assert_eq!(syslog.make_writer().write(b"x\n").unwrap(), 2);
        }
    }
}
