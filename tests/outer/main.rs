//! The outer process: what it tells a service manager, who may control it, upgrades that it refuses, and what it does when another
//! process ends.

mod control;
mod notify;
mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use gatherfs_support::daemon::{Scratch, gatherfsd, is_root};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};

/// The sandboxes that this user may have.
fn sandboxes() -> &'static [&'static str] {
    if is_root("a sandbox") { &["none", "chroot", "namespace"] } else { &["none"] }
}

/// A guest that has mounted the share behind `socket`.
fn mount(socket: &Path) -> (Arc<Guest>, Client) {
    let guest = Guest::connect(socket, &GuestOptions::default()).expect("a connection");
    let mut client = Client::new(&guest, FIRST_REQUEST);
    client.init().expect("INIT");
    (guest, client)
}

/// gatherfsd for a share and a socket, `s`, in `scratch`.
fn command(scratch: &Scratch, options: &[&str]) -> Command {
    let share = scratch.join("share");
    fs::create_dir_all(&share).expect("the shared directory");
    let mut command = gatherfsd();
    command.arg("--shared-dir").arg(share).arg("--socket-path").arg(scratch.join("s")).args(options);
    command
}

/// gatherfsctl for the daemon at `socket`: its exit status, and what it printed on either.
fn control(socket: &Path, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatherfsctl"));
    let output = command.arg("--socket-path").arg(socket).args(words).output().expect("gatherfsctl starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

fn control_socket(socket: &Path) -> PathBuf {
    gatherfs::outer::path_beside(socket)
}
