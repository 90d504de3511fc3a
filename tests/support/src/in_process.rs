//! The whole device in the test's own process, with the synthetic guest on the other end of its socket: for tests that look
//! into the process, or give the device a part of their own.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use gatherfs::device::{ConfigSpace, Server, ServerOptions, Service};
use gatherfs::host::{CachePolicy, Descriptors, FileHandles, Options, Share, Timeouts, TmpfilePolicy};
use gatherfs::metrics::Metrics;
use gatherfs::state::RequestRecords;
use gatherfs::sys::working_dir::DescriptorDir;

use crate::guest::client::Client;
use crate::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};
use crate::scratch::Scratch;

/// A device and the guest that has mounted it. The device ends when this is dropped.
pub struct Device {
    /// The guest's side of the first request queue.
    pub client: Option<Client>,
    /// What the device counts.
    pub metrics: Arc<Metrics>,
    server: Option<JoinHandle<()>>,
    scratch: Scratch,
}

/// Options of a share that no test has an opinion on, for a directory that is not known yet.
pub fn share_options() -> Options {
    Options {
        shared_dir: PathBuf::new(),
        readdirplus: true,
        preserve_noatime: false,
        birth_times: false,
        cache: CachePolicy::Auto,
        timeouts: Timeouts::of(CachePolicy::Auto),
        allow_mmap: false,
        announce_submounts: true,
        host_locks: false,
        lock_wait: None,
        tmpfile: TmpfilePolicy::Auto,
        readonly: false,
        allow_direct_io: false,
        writeback: false,
        xattr: false,
        allow_project_ids: false,
        translation: Default::default(),
        rights: Default::default(),
        file_handles: FileHandles::Prefer,
    }
}

impl Device {
    /// Starts a device that shares a new directory on tmpfs; `change` may give the service other parts.
    pub fn start(options: Options, change: impl Fn(Service) -> Service + Send + 'static) -> Device {
        let (mut device, ()) = Device::start_unmounted((options, Descriptors::of(4096, None)), |_| (), change);
        device.client().init().expect("INIT");
        device
    }

    /// As [`Device::start`], for a guest that has sent no INIT. With what `see` saw of the share.
    pub fn start_unmounted<S>(
        (options, descriptors): (Options, Descriptors),
        see: impl FnOnce(&Share) -> S,
        change: impl Fn(Service) -> Service + Send + 'static,
    ) -> (Device, S) {
        let scratch = Scratch::on_tmpfs();
        let shared_dir = scratch.path().join("shared");
        std::fs::create_dir_all(&shared_dir).expect("the shared directory");
        let socket = scratch.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let root = std::fs::File::open(&shared_dir).expect("the shared directory").into();
        let descriptor_dir = DescriptorDir::open().expect("/proc/self/fd");
        let share = Share::export(Options { shared_dir, ..options }, descriptors, root, descriptor_dir).expect("a share");
        let seen = see(&share);
        let config_space = Some(ConfigSpace::new("tag", 1).expect("a tag"));
        let (device, queue_cpus) = Default::default();
        let records = RequestRecords::new().expect("memory for the records");
        let server_options = ServerOptions { device, config_space, keep_listening: false, rings: None, queue_cpus, records, resumed: None };
        let server = Server::new(share, server_options).expect("a server");
        let metrics = Arc::clone(server.metrics());
        let server = std::thread::spawn(move || server.serve_with(&listener, change).expect("a session"));
        let guest = Guest::connect(&socket, &GuestOptions::default()).expect("the device's socket");
        let mut client = Client::new(&guest, FIRST_REQUEST);
        client.caller.uid = rustix::process::geteuid().as_raw();
        client.caller.gid = rustix::process::getegid().as_raw();
        (Device { client: Some(client), metrics, server: Some(server), scratch }, seen)
    }

    /// The guest's side of the first request queue.
    pub fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("a client, until the device is dropped")
    }

    /// A path in the shared directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join("shared").join(name)
    }

    /// Disconnects the guest and waits until the device has ended.
    pub fn end(&mut self) {
        self.client = None;
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.end();
    }
}
