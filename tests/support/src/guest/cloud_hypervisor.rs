//! The frontend that Cloud Hypervisor is, where that differs from QEMU: INFLIGHT_SHMFD, the order of its messages, and what it says
//! when it connects again after its connection ended (virtio-devices/src/vhost_user/vu_common_ctrl.rs there, `setup_vhost_user` and
//! `reinitialize_vhost_user`).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::frontend::{ANSWER_TIMEOUT, Guest, Result, addresses, connect};

/// What GET_INFLIGHT_FD gave: its numbers and the file.
pub type Inflight = (VhostUserInflight, File);

impl Guest {
    /// Tells the daemon all that the device has. GET_INFLIGHT_FD is said where there is no file yet.
    pub(super) fn start_as_cloud_hypervisor(&self) -> Result<()> {
        self.say_all(|| ())
    }

    /// As `go_on`, with `between` before each message.
    pub fn say_all(&self, mut between: impl FnMut()) -> Result<()> {
        let queues = 1 + self.request_queues();
        let mut say = |message: &dyn Fn() -> Result<()>| {
            between();
            message()
        };
        say(&|| self.session().set_features(self.info().accepted))?;
        say(&|| self.send_memory())?;
        (0..queues).try_for_each(|index| say(&|| self.set_size(index)))?;
        if self.inflight().is_none() {
            say(&|| self.get_inflight(queues as u16, self.lock(0).options().size))?;
        }
        say(&|| self.show_inflight())?;
        for index in 0..queues {
            say(&|| self.session().set_vring_addr(index, &addresses(&self.lock(index), false)))?;
            // What the guest offers next, whatever the daemon has not taken yet.
            say(&|| self.session().set_vring_base(index, self.lock(index).avail_idx()))?;
            say(&|| self.set_call(index))?;
            say(&|| self.session().set_vring_kick(index, self.lock(index).kick_fd()))?;
        }
        (0..queues).try_for_each(|index| say(&|| self.enable_queue(index, true)))
    }

    fn set_size(&self, index: usize) -> Result<()> {
        let size = self.lock(index).options().size;
        self.session().set_vring_num(index, size)
    }

    /// The file that is shown.
    pub fn inflight(&self) -> MutexGuard<'_, Option<Inflight>> {
        self.inflight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// GET_INFLIGHT_FD. The file is shown from now on.
    pub fn get_inflight(&self, num_queues: u16, queue_size: u16) -> Result<()> {
        let given = self.session().get_inflight_fd(&VhostUserInflight { num_queues, queue_size, ..VhostUserInflight::default() })?;
        *self.inflight() = Some(given);
        Ok(())
    }

    /// SET_INFLIGHT_FD.
    pub fn show_inflight(&self) -> Result<()> {
        match &*self.inflight() {
            Some((numbers, file)) => self.session().set_inflight_fd(numbers, file.as_raw_fd()),
            None => Ok(()),
        }
    }

    /// Connects again to the daemon behind `path`, without a word about the device.
    pub fn connect_again(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.disconnect();
        let stream = connect(path.as_ref())?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let socket = Arc::new(OwnedFd::from(stream.try_clone()?));
        drop(self.use_connection(Frontend::from_stream(stream, u64::from(u16::MAX)), &socket));
        (0..=self.request_queues()).for_each(|index| self.lock(index).set_peer(Arc::clone(&socket)));
        let again = |session: &mut Frontend| -> Result<()> {
            session.set_owner()?;
            session.get_features()?;
            session.set_protocol_features(self.info().protocol)?;
            session.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            Ok(())
        };
        again(&mut self.session()).map_err(io::Error::other)
    }

    /// Connects again and goes on.
    pub fn reconnect(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.connect_again(path)?;
        self.go_on().map_err(io::Error::other)
    }

    /// What follows [`Guest::connect_again`].
    pub fn go_on(&self) -> Result<()> {
        self.start_as_cloud_hypervisor()
    }
}
