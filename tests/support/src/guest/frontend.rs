//! The vhost-user frontend of a synthetic guest: what QEMU does for `vhost-user-fs-pci`.
//!
//! A [`Guest`] owns the connection, guest memory and the rings. It knows nothing of FUSE.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};

use super::cloud_hypervisor::Inflight;
use super::memory::{Memory, PAGE_SIZE, Region};
use super::ring::{Ring, RingOptions};

/// VIRTIO_RING_F_INDIRECT_DESC.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_RING_F_EVENT_IDX.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// VIRTIO_F_VERSION_1.
pub const F_VERSION_1: u64 = 1 << 32;
/// VHOST_F_LOG_ALL.
pub const F_LOG_ALL: u64 = 1 << 26;

/// The queue FORGET and INTERRUPT go to.
pub const HIPRIO: usize = 0;
/// The first request queue.
pub const FIRST_REQUEST: usize = 1;

/// How long the daemon may take to answer a vhost-user message.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a socket may take to appear and accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;
/// `VHOST_VRING_F_LOG`: the device marks used-ring pages in the dirty log.
const VRING_F_LOG: u32 = 1;
/// Bytes of the virtio-fs config space: 36 of the tag, 4 of num_request_queues.
const CONFIG_SIZE: usize = 40;

/// What a guest is made like.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Guest memory as `(guest-physical address, length)`.
    pub layout: Vec<(u64, u64)>,
    /// Descriptors per queue.
    pub queue_size: u16,
    /// Request queues to set up, at most as many as the device has.
    pub request_queues: usize,
    /// Accept VIRTIO_RING_F_EVENT_IDX.
    pub event_idx: bool,
    /// Accept VIRTIO_RING_F_INDIRECT_DESC.
    pub indirect: bool,
    /// Look for completions instead of waiting for them.
    pub busy_poll: bool,
    /// Protocol features to accept.
    pub protocol: Protocol,
}

impl Default for GuestOptions {
    /// Two regions with a gap between them, as on a PC, one request queue of 1024, all features.
    fn default() -> Self {
        Self {
            layout: vec![(0, 64 * MIB), (4096 * MIB, 64 * MIB)],
            queue_size: 1024,
            request_queues: 1,
            event_idx: true,
            indirect: true,
            busy_poll: false,
            protocol: Protocol::MQ
                | Protocol::REPLY_ACK
                | Protocol::CONFIG
                | Protocol::CONFIGURE_MEM_SLOTS
                | Protocol::LOG_SHMFD
                | Protocol::RESET_DEVICE,
        }
    }
}

/// What the device said about itself and what was agreed.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Virtio features offered.
    pub offered: u64,
    /// Virtio features accepted.
    pub accepted: u64,
    /// Protocol features offered.
    pub protocol_offered: Protocol,
    /// Protocol features accepted.
    pub protocol: Protocol,
    /// GET_QUEUE_NUM, the hiprio queue included; 2 when MQ is not offered.
    pub queue_num: usize,
    /// Tag and num_request_queues of the config space, when CONFIG is offered.
    pub config: Option<(String, u32)>,
    /// GET_MAX_MEM_SLOTS, when CONFIGURE_MEM_SLOTS is offered.
    pub mem_slots: Option<u64>,
}

/// A guest with one virtio-fs device. Dropping it closes the connection.
pub struct Guest {
    session: Mutex<Frontend>,
    socket: Mutex<Arc<OwnedFd>>,
    /// What GET_INFLIGHT_FD gave, where INFLIGHT_SHMFD was agreed on.
    pub(super) inflight: Mutex<Option<Inflight>>,
    peer_pid: Option<u32>,
    memory: Arc<Memory>,
    rings: Vec<Mutex<Ring>>,
    info: DeviceInfo,
    unique: AtomicU64,
    log: Mutex<Option<Region>>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("info", &self.info).finish_non_exhaustive()
    }
}

/// What a vhost-user step can fail with.
pub type Result<T> = std::result::Result<T, vhost::Error>;

impl Guest {
    /// Connects to the daemon that listens (or soon will) on `path` and starts the device.
    pub fn connect(path: impl AsRef<Path>, options: &GuestOptions) -> io::Result<Arc<Self>> {
        let stream = connect(path.as_ref())?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Self::from_stream(stream, options)
    }

    /// Starts the device behind a connected socket.
    pub fn from_stream(stream: UnixStream, options: &GuestOptions) -> io::Result<Arc<Self>> {
        let peer = rustix::net::sockopt::socket_peercred(&stream).ok();
        let socket = Arc::new(OwnedFd::from(stream.try_clone()?));
        let mut session = Frontend::from_stream(stream, u64::from(u16::MAX));
        let info = negotiate(&mut session, options).map_err(io::Error::other)?;
        let memory = Arc::new(Memory::new(&options.layout)?);
        let ring_options = RingOptions {
            size: options.queue_size,
            event_idx: info.accepted & F_EVENT_IDX != 0,
            indirect: info.accepted & F_INDIRECT_DESC != 0,
            busy_poll: options.busy_poll,
        };
        let queues = info.queue_num.min(FIRST_REQUEST + options.request_queues);
        let ring = |_| {
            let mut ring = Ring::new(&memory, ring_options)?;
            ring.set_peer(Arc::clone(&socket));
            Ok(Mutex::new(ring))
        };
        let rings = (0..queues).map(ring).collect::<io::Result<Vec<_>>>()?;
        let guest = Self {
            session: Mutex::new(session),
            socket: Mutex::new(socket),
            inflight: Mutex::default(),
            peer_pid: peer.map(|peer| peer.pid.as_raw_nonzero().get().cast_unsigned()),
            memory,
            rings,
            info,
            unique: AtomicU64::new(0),
            log: Mutex::default(),
        };
        guest.start().map_err(io::Error::other)?;
        Ok(Arc::new(guest))
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The process that listened on the socket.
    pub fn peer_pid(&self) -> io::Result<u32> {
        self.peer_pid.ok_or_else(|| io::Error::other("the peer of the socket is not known"))
    }

    /// What was negotiated.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Number of request queues that are set up.
    pub fn request_queues(&self) -> usize {
        self.rings.len() - FIRST_REQUEST
    }

    /// Locks virtqueue `index` for its driver.
    pub fn lock(&self, index: usize) -> MutexGuard<'_, Ring> {
        self.rings[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, for messages that have no function here.
    pub fn session(&self) -> MutexGuard<'_, Frontend> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request identity nobody has used; Linux counts in steps of two.
    pub fn next_unique(&self) -> u64 {
        self.unique.fetch_add(2, Ordering::Relaxed) + 2
    }

    /// Has the next request carry the identity `unique`, which may have been used: not every driver counts for ever.
    pub fn use_unique_next(&self, unique: u64) {
        self.unique.store(unique - 2, Ordering::Relaxed);
    }

    /// Tells the daemon features and memory, and starts every ring at 0.
    fn start(&self) -> Result<()> {
        if self.info.protocol.contains(Protocol::INFLIGHT_SHMFD) {
            return self.start_as_cloud_hypervisor();
        }
        {
            let session = self.session();
            session.set_features(self.info.accepted)?;
            let regions: Vec<_> = self.memory.regions().iter().map(|r| region_info(r)).collect();
            session.set_mem_table(&regions)?;
        }
        (0..self.rings.len()).try_for_each(|index| self.restart_queue(index, 0))
    }

    /// Goes on with the daemon behind `path`, which has the records of the present one: says all that was said before again, as
    /// a keeper does, with `base` as the position of each ring. The present connection is returned, and lives as long as that.
    pub fn move_to(&self, path: impl AsRef<Path>, base: u16) -> io::Result<Frontend> {
        let stream = connect(path.as_ref())?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let socket = Arc::new(OwnedFd::from(stream.try_clone()?));
        let mut next = Frontend::from_stream(stream, u64::from(u16::MAX));
        let again = |next: &mut Frontend| -> Result<()> {
            next.set_owner()?;
            next.get_features()?;
            next.get_protocol_features()?;
            next.set_protocol_features(self.info.protocol)?;
            next.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            Ok(())
        };
        again(&mut next).map_err(io::Error::other)?;
        let before = self.use_connection(next, &socket);
        self.say_again(&socket, base).map_err(io::Error::other)?;
        Ok(before)
    }

    /// The connection by `socket` takes the place of the present one, which is returned.
    pub(super) fn use_connection(&self, session: Frontend, socket: &Arc<OwnedFd>) -> Frontend {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(socket);
        std::mem::replace(&mut *self.session(), session)
    }

    /// Ends the connection, as at the VMM's death. Whoever still holds a ring holds the socket, too.
    pub fn disconnect(&self) {
        let _ = rustix::net::shutdown(&**self.socket.lock().unwrap_or_else(PoisonError::into_inner), rustix::net::Shutdown::Both);
    }

    fn say_again(&self, socket: &Arc<OwnedFd>, base: u16) -> Result<()> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        self.session().set_features(self.info.accepted | if log.is_some() { F_LOG_ALL } else { 0 })?;
        self.send_memory()?;
        if let Some(region) = log.as_ref() {
            let shared = VhostUserDirtyLogRegion { mmap_size: region.len(), mmap_offset: 0, mmap_handle: region.fd() };
            self.session().set_log_base(0, Some(shared))?;
        }
        (0..self.rings.len()).try_for_each(|index| {
            self.lock(index).set_peer(Arc::clone(socket));
            self.restart_queue(index, base)
        })
    }

    /// Stops a queue and returns the available index the device would go on at.
    pub fn stop_queue(&self, index: usize) -> Result<u16> {
        Ok(self.session().get_vring_base(index)? as u16)
    }

    /// Starts a stopped queue at available index `base`.
    pub fn restart_queue(&self, index: usize, base: u16) -> Result<()> {
        self.set_call(index)?;
        self.restart_queue_without_call(index, base)
    }

    /// As `restart_queue`, with no eventfd to tell of answers until `set_call`: the order of QEMU.
    pub fn restart_queue_without_call(&self, index: usize, base: u16) -> Result<()> {
        let ring = self.lock(index);
        let mut session = self.session();
        session.set_vring_num(index, ring.options().size)?;
        session.set_vring_base(index, base)?;
        session.set_vring_addr(index, &addresses(&ring, false))?;
        session.set_vring_kick(index, ring.kick_fd())?;
        session.set_vring_enable(index, true)
    }

    /// Gives the daemon the eventfd by which it tells of answers.
    pub fn set_call(&self, index: usize) -> Result<()> {
        let ring = self.lock(index);
        self.session().set_vring_call(index, ring.call_fd())
    }

    /// Enables or disables a queue without stopping it.
    pub fn enable_queue(&self, index: usize, enable: bool) -> Result<()> {
        self.session().set_vring_enable(index, enable)
    }

    /// What a guest reboot looks like to the daemon: every ring is stopped, the device is reset
    /// when `reset` is set and RESET_DEVICE was agreed, then the same connection starts over with
    /// empty rings. Clients must send INIT again.
    pub fn reboot(&self, reset: bool) -> Result<()> {
        for index in 0..self.rings.len() {
            self.enable_queue(index, false)?;
            self.stop_queue(index)?;
        }
        if reset && self.info.protocol.contains(Protocol::RESET_DEVICE) {
            self.session().reset_device()?;
        }
        for index in 0..self.rings.len() {
            self.lock(index).reset();
        }
        self.start()
    }

    /// Adds memory while the device runs (ADD_MEM_REG).
    pub fn add_region(&self, gpa: u64, len: u64) -> Result<()> {
        let region = self.memory.add(gpa, len).map_err(vhost::Error::IOError)?;
        self.session().add_mem_region(&region_info(&region)).map(|_| ())
    }

    /// Removes the region that starts at `gpa` while the device runs (REM_MEM_REG).
    pub fn remove_region(&self, gpa: u64) -> Result<()> {
        let region = self.memory.remove(gpa).ok_or(vhost::Error::InvalidGuestMemoryRegion)?;
        self.session().remove_mem_region(&region_info(&region))
    }

    /// Takes the region at `gpa` away from the daemon, runs `meanwhile` and gives it back; the guest's own
    /// view of it stays.
    pub fn without_region(&self, gpa: u64, meanwhile: impl FnOnce()) -> Result<()> {
        let regions = self.memory.regions();
        let region = regions.iter().find(|r| r.gpa() == gpa).ok_or(vhost::Error::InvalidGuestMemoryRegion)?;
        self.session().remove_mem_region(&region_info(region))?;
        meanwhile();
        self.session().add_mem_region(&region_info(region)).map(|_| ())
    }

    /// Sends the whole memory table again (SET_MEM_TABLE).
    pub fn send_memory(&self) -> Result<()> {
        let regions: Vec<_> = self.memory.regions().iter().map(|r| region_info(r)).collect();
        self.session().set_mem_table(&regions).map(|_| ())
    }

    /// Starts or stops logging of written pages as a live migration does.
    pub fn set_log(&self, on: bool) -> Result<()> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if on {
            let bytes = (self.memory.end() / PAGE_SIZE).div_ceil(8).next_multiple_of(PAGE_SIZE);
            let region = Region::new(0, bytes).map_err(vhost::Error::IOError)?;
            let shared = VhostUserDirtyLogRegion { mmap_size: bytes, mmap_offset: 0, mmap_handle: region.fd() };
            self.session().set_log_base(0, Some(shared))?;
            *log = Some(region);
        }
        let features = self.info.accepted | if on { F_LOG_ALL } else { 0 };
        self.session().set_features(features)?;
        for (index, ring) in self.rings.iter().enumerate() {
            let ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
            self.session().set_vring_addr(index, &addresses(&ring, on))?;
        }
        Ok(())
    }

    /// Guest-physical addresses of the pages logged as written since the last call.
    pub fn take_dirty_pages(&self) -> Vec<u64> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(region) = log.as_ref() else {
            return Vec::new();
        };
        let mut pages = Vec::new();
        for index in 0..region.len() {
            // SAFETY: the byte lies in the mapped log, which `region` keeps mapped.
            let byte = unsafe { AtomicU8::from_ptr(region.host(index)) };
            let bits = byte.swap(0, Ordering::AcqRel);
            pages.extend((0..8).filter(|b| bits & 1 << b != 0).map(|b| (index * 8 + b) * PAGE_SIZE));
        }
        pages
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// Connects as soon as somebody listens on `path`.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Feature negotiation and what can be asked of the device before it runs.
fn negotiate(session: &mut Frontend, options: &GuestOptions) -> Result<DeviceInfo> {
    session.set_owner()?;
    let offered = session.get_features()?;
    let mut wanted = F_VERSION_1 | F_PROTOCOL_FEATURES;
    wanted |= if options.event_idx { F_EVENT_IDX } else { 0 };
    wanted |= if options.indirect { F_INDIRECT_DESC } else { 0 };
    let protocol_offered = session.get_protocol_features()?;
    let protocol = protocol_offered & options.protocol;
    session.set_protocol_features(protocol)?;
    if protocol.contains(Protocol::REPLY_ACK) {
        session.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    let queue_num = match protocol.contains(Protocol::MQ) {
        true => session.get_queue_num()? as usize,
        false => 2,
    };
    let config = match protocol.contains(Protocol::CONFIG) {
        true => Some(read_config(session)?),
        false => None,
    };
    let mem_slots = match protocol.contains(Protocol::CONFIGURE_MEM_SLOTS) {
        true => Some(session.get_max_mem_slots()?),
        false => None,
    };
    let accepted = offered & wanted;
    Ok(DeviceInfo { offered, accepted, protocol_offered, protocol, queue_num, config, mem_slots })
}

/// Tag and num_request_queues, virtio 1.3 section 5.11.4.
fn read_config(session: &mut Frontend) -> Result<(String, u32)> {
    let (flags, room) = (VhostUserConfigFlags::empty(), [0; CONFIG_SIZE]);
    let (_, bytes) = session.get_config(0, CONFIG_SIZE as u32, flags, &room)?;
    let tag = bytes[..36].split(|byte| *byte == 0).next().unwrap_or_default();
    let queues = bytes[36..40].iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte));
    Ok((String::from_utf8_lossy(tag).into_owned(), queues))
}

fn region_info(region: &Region) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.gpa(),
        memory_size: region.len(),
        userspace_addr: region.user_addr(),
        mmap_offset: 0,
        mmap_handle: region.fd(),
    }
}

/// SET_VRING_ADDR of `ring`; with `log`, used-ring writes are logged at its guest address.
pub(super) fn addresses(ring: &Ring, log: bool) -> VringConfigData {
    let (desc_table_addr, avail_ring_addr, used_ring_addr) = ring.user_addresses();
    VringConfigData {
        queue_max_size: ring.options().size,
        queue_size: ring.options().size,
        flags: if log { VRING_F_LOG } else { 0 },
        desc_table_addr,
        used_ring_addr,
        avail_ring_addr,
        log_addr: log.then(|| ring.addresses().2),
    }
}
