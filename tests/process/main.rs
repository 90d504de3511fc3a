//! The life of the process: its command line, its socket, its connections, signals and sandbox.

mod arguments;
mod bindfs;
mod connections;
mod dead_host;
mod deaths;
mod descriptors;
mod device_errors;
mod file_systems;
mod io_engine;
mod log;
mod options;
mod packaging;
mod queue_cpus;
mod real_command_lines;
mod rights;
mod sandbox;
mod sandbox_file;
mod sandbox_hosts;
mod sandbox_user;
mod signals;
mod socket;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use gatherfs_support::daemon::{Process, Scratch, gatherfsd};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use gatherfs_support::guest::fuse::ROOT;

/// A guest that has mounted the share behind `socket`.
fn mount(socket: &Path) -> (Arc<Guest>, Client) {
    let guest = Guest::connect(socket, &GuestOptions::default()).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    (guest, client)
}

/// Panics unless a directory can be made in the share and is found there.
fn assert_serves(client: &mut Client, name: &str) {
    let made = client.mkdir(ROOT, name, 0o755).expect("MKDIR");
    assert_eq!(client.lookup(ROOT, name).map(|e| e.nodeid), Ok(made.nodeid));
    assert_eq!(client.rmdir(ROOT, name), Ok(()));
}

/// gatherfsd with `options`, for a share and a socket in `scratch`, without a sandbox.
fn command(scratch: &Scratch, options: &[&str]) -> Command {
    let share = scratch.join("share");
    std::fs::create_dir_all(&share).expect("the shared directory");
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(share).arg("--socket-path").arg(scratch.join("s"));
    command.args(["--sandbox", "none"]).args(options);
    command
}

/// Runs `command` to its end, which must be a refusal: its exit status and what it said.
fn refused(command: &mut Command) -> (ExitStatus, String) {
    let mut process = Process::spawn(command);
    let status = process.wait();
    assert!(!status.success(), "{}", process.log());
    (status, process.log())
}

/// Lets the process that `command` starts inherit `descriptor` as number `fd`, which must be one that nobody has.
fn inherit(command: &mut Command, descriptor: impl AsFd, fd: i32) {
    let from = descriptor.as_fd().as_raw_fd();
    let duplicate = move || {
        // SAFETY: dup2(2) takes two numbers.
        if unsafe { libc::dup2(from, fd) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: dup2(2) is one system call and may be made between fork and exec.
    unsafe { command.pre_exec(duplicate) };
}
