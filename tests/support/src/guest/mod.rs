//! A synthetic guest: the driver side of a virtio-fs device, without a virtual machine.
//!
//! It speaks vhost-user to a daemon, lays split virtqueues out in memory of its own and sends the
//! FUSE requests a Linux guest would send. It shares no code with the daemon, so it can judge one:
//! whatever virtio 1.3 section 5.11 and `linux/fuse.h` promise is checked here a second time.
//!
//! ```ignore
//! let guest = Guest::connect(socket, &GuestOptions::default())?;
//! let mut client = Client::new(&guest, FIRST_REQUEST);
//! client.init()?;
//! let file = client.create(ROOT, "name", 0o644, libc::O_RDWR)?;
//! client.write(file.entry.nodeid, file.open.fh, 0, b"content")?;
//! assert_eq!(client.lookup(ROOT, "other"), Err(libc::ENOENT.into()));
//! ```

pub mod client;
mod cloud_hypervisor;
pub mod frontend;
pub mod fuse;
pub mod memory;
pub mod ring;
