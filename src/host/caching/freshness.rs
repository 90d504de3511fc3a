//! How long the guest may cache what it gets of one file: the share's timeouts, and with `--watch` less for what other
//! processes of the host changed recently.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::policy::{CachePolicy, Timeouts};
use super::watch::{Watch, Watched};
use crate::host::inodes::Inodes;
use crate::sys::file_handle::{self, Handle};
use crate::sys::stat::{self, Statx};
use crate::types::NodeId;

/// Timeouts of `--cache auto`, for files of which the watch does not see every change.
fn unwatched() -> Timeouts {
    Timeouts::of(CachePolicy::Auto)
}

/// A directory that is watched.
#[derive(Debug)]
pub(in crate::host) struct WatchedDirectory {
    node: NodeId,
    device: u64,
    handle: Handle,
    fd: Arc<OwnedFd>,
}

fn ctime_ns(st: &Statx) -> u64 {
    st.stx_ctime.tv_sec.cast_unsigned().saturating_mul(1_000_000_000).saturating_add(u64::from(st.stx_ctime.tv_nsec))
}

fn is_directory(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFDIR
}

/// The timeouts of the files that the guest knows.
#[derive(Debug)]
pub(in crate::host) struct Freshness {
    timeouts: Timeouts,
    inodes: Arc<Inodes>,
    watch: OnceLock<Arc<Watch>>,
    /// The session ended: the watch belongs to the next one.
    has_ended: AtomicBool,
}

impl Freshness {
    /// Timeouts for `inodes`, with a watch if there is one already.
    pub fn new(timeouts: Timeouts, inodes: Arc<Inodes>, watch: OnceLock<Arc<Watch>>) -> Freshness {
        Freshness { timeouts, inodes, watch, has_ended: AtomicBool::new(false) }
    }

    /// Uses `watch`, where there is none yet.
    pub fn set_watch(&self, watch: Arc<Watch>) {
        let _ = self.watch.set(watch);
    }

    /// The watch, for the next session.
    pub fn hand_over_watch(&self) -> OnceLock<Arc<Watch>> {
        self.watch.clone()
    }

    /// The session ends: no change is noticed for it any more.
    pub fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
    }

    /// The watch, while the session lasts.
    pub fn watch(&self) -> Option<&Watch> {
        self.watch.get().map(Arc::as_ref).filter(|_| !self.has_ended.load(Ordering::Relaxed))
    }

    /// Runs `look` on `node` as the watch identifies it. A daemon that may not open file handles can still get them.
    fn by_event<R>(&self, node: NodeId, look: impl FnOnce(&Watched<'_>) -> R) -> Option<R> {
        let identity = self.inodes.identity(node).ok()?;
        let asked = || file_handle::of(self.inodes.path_fd(node).ok()?.as_fd(), c"").ok()?.map(|(handle, _)| handle);
        let handle = identity.handle.or_else(asked)?;
        let is_named = identity.handle.is_none() || is_directory(identity.kind);
        Some(look(&Watched { device: identity.device, handle: &handle, is_named }))
    }

    /// The device of `node`, and the handle by which events name it.
    fn handle_of(&self, node: NodeId) -> Option<(u64, Handle)> {
        self.by_event(node, |file| (file.device, *file.handle))
    }

    /// Watches the directory `node`, which the guest knows from now on.
    pub fn watch_directory(&self, node: NodeId) {
        let Some(watch) = self.watch() else { return };
        match self.handle_of(node) {
            Some((device, handle)) if watch.is_unmarked(node, device, &handle) => {
                if let Ok(fd) = self.inodes.path_fd(node) {
                    watch.cover(node, device, &handle, fd.as_fd());
                }
            }
            Some(_) => {}
            None => self.watch_without_handle(watch, node),
        }
    }

    /// A directory without a handle, which no event can name: nothing is seen of its file system. If only this host changes that
    /// one, only this directory has no handle, and nothing is seen at all.
    fn watch_without_handle(&self, watch: &Watch, node: NodeId) {
        let is_here = |fd: Arc<OwnedFd>| stat::is_changed_here_only(fd.as_fd());
        match (self.inodes.identity(node), self.inodes.path_fd(node).and_then(is_here)) {
            (Ok(identity), Ok(false)) => watch.sees_nothing_on(identity.device),
            _ => watch.give_up(),
        }
    }

    /// What [`Freshness::unwatch`] takes of the directory `node`, which the guest may be about to forget.
    pub fn watched(&self, node: NodeId) -> Option<WatchedDirectory> {
        let watch = self.watch().filter(|_| self.inodes.kind(node) == Ok(libc::S_IFDIR))?;
        let (device, handle) = self.handle_of(node).filter(|(device, handle)| !watch.is_unmarked(node, *device, handle))?;
        Some(WatchedDirectory { node, device, handle, fd: self.inodes.path_fd(node).ok()? })
    }

    /// Ends the watch over a directory that the guest forgot.
    pub fn unwatch(&self, watched: Option<WatchedDirectory>) {
        if let (Some(watch), Some(w)) = (self.watch(), watched) {
            watch.uncover(w.node, w.device, &w.handle, w.fd.as_fd());
        }
    }

    /// Entry timeout and timeout of negative entries in the directory `parent`; `attr` is not set for it.
    pub fn entry_timeouts(&self, parent: NodeId) -> Timeouts {
        let t = self.timeouts;
        let Some(watch) = self.watch() else { return t };
        let quiet = self.handle_of(parent).and_then(|(device, handle)| watch.entry_timeout(device, &handle));
        let at_most = quiet.map_or(unwatched(), |quiet| Timeouts { entry: quiet, negative: quiet, attr: quiet });
        Timeouts { entry: t.entry.min(at_most.entry), negative: t.negative.min(at_most.negative), ..t }
    }

    /// Attribute timeout of `node`, of which `st` was taken.
    pub fn attr_timeout(&self, node: NodeId, st: &Statx) -> Duration {
        let max = self.timeouts.attr;
        let Some(watch) = self.watch() else { return max };
        // A change through a name in a directory that the guest does not know is not seen.
        let may_be_elsewhere = st.stx_nlink > 1 && !is_directory(u32::from(st.stx_mode));
        let timeout = || self.by_event(node, |file| watch.attr_timeout(file, ctime_ns(st)))?;
        let quiet = if may_be_elsewhere { None } else { timeout() };
        max.min(quiet.unwrap_or(unwatched().attr))
    }

    /// Whether the watch sees changes of `node` and saw none recently: what the guest has cached of it stays valid at OPEN.
    pub fn is_unchanged(&self, node: NodeId) -> bool {
        let Some(watch) = self.watch() else { return false };
        self.by_event(node, |file| !watch.has_changed(file)) == Some(true)
    }
}
