//! For how long the guest may believe what it is told of one file: the share's timeouts, and with `--watch` less
//! for what other processes of the host changed lately.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::fuse::abi::{Attr, EntryOut, open_flags};
use crate::host::caching::policy::{CachePolicy, Timeouts};
use crate::host::caching::watch::{Watch, Watched};
use crate::host::inodes::entries::ino_in_handle;
use crate::host::inodes::table::FileKey;
use crate::host::share::Share;
use crate::sys::file_handle::{self, Handle};
use crate::sys::stat;
use crate::types::NodeId;

/// What `--cache auto` allows, for files that the watch does not know enough of.
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

fn ctime_ns(attr: &Attr) -> u64 {
    attr.ctime.saturating_mul(1_000_000_000).saturating_add(u64::from(attr.ctimensec))
}

fn is_directory(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFDIR
}

impl Share {
    /// The device of `node`, and the handle by which events name it. A daemon that may not open by handle can still ask for it.
    fn handle_of(&self, node: NodeId) -> Option<(u64, Handle)> {
        self.by_event(node, |file| (file.device, *file.handle))
    }

    /// Runs `look` on `node` as the watch knows it.
    fn by_event<R>(&self, node: NodeId, look: impl FnOnce(&Watched<'_>) -> R) -> Option<R> {
        let identity = self.inodes.identity(node).ok()?;
        let asked = || file_handle::of(self.path_fd(node).ok()?.as_fd(), c"").ok()?.map(|(handle, _)| handle);
        let handle = identity.handle.or_else(asked)?;
        let is_named = identity.handle.is_none() || is_directory(identity.kind);
        Some(look(&Watched { device: identity.device, handle: &handle, is_named }))
    }

    /// Whether the guest may know the file that has `handle` in the share's file system.
    pub(in crate::host) fn may_know(&self, handle: &Handle) -> bool {
        let Some(ino) = ino_in_handle(handle) else { return true };
        self.inodes.knows(&FileKey { device: self.root.device, ino, mount_id: self.root.mount_id })
    }

    /// Watches the directory `node`, which the guest knows from now on.
    pub(in crate::host) fn watch_directory(&self, node: NodeId) {
        let Some(watch) = self.watch() else { return };
        match self.handle_of(node) {
            Some((device, handle)) if watch.lacks(node, device, &handle) => {
                if let Ok(fd) = self.path_fd(node) {
                    watch.cover(node, device, &handle, fd.as_fd());
                }
            }
            Some(_) => {}
            None => self.watch_handleless(watch, node),
        }
    }

    /// A directory that no event can name: nothing is seen of its file system, or of none where it is one that others do not
    /// change, for then only this directory is without a handle.
    fn watch_handleless(&self, watch: &Watch, node: NodeId) {
        let is_here = |fd: Arc<OwnedFd>| stat::is_changed_here_only(fd.as_fd());
        match (self.inodes.identity(node), self.path_fd(node).and_then(is_here)) {
            (Ok(identity), Ok(false)) => watch.sees_nothing_on(identity.device),
            _ => watch.give_up(),
        }
    }

    /// What it takes to end the watch over `node`, which the guest may be about to forget.
    pub(in crate::host) fn watched(&self, node: NodeId) -> Option<WatchedDirectory> {
        let watch = self.watch().filter(|_| self.kind(node) == Ok(libc::S_IFDIR))?;
        let (device, handle) = self.handle_of(node).filter(|(device, handle)| !watch.lacks(node, *device, handle))?;
        Some(WatchedDirectory { node, device, handle, fd: self.path_fd(node).ok()? })
    }

    /// Ends the watch over a directory that the guest forgot.
    pub(in crate::host) fn unwatch(&self, watched: Option<WatchedDirectory>) {
        if let (Some(watch), Some(w)) = (self.watch(), watched) {
            watch.uncover(w.node, w.device, &w.handle, w.fd.as_fd());
        }
    }

    /// The answer to a LOOKUP of a name that is not in `parent`: `None` where the guest may not keep it, which
    /// makes the answer ENOENT.
    pub(in crate::host) fn no_entry(&self, parent: NodeId) -> Option<EntryOut> {
        let negative = self.names_hold(parent).negative;
        let entry = EntryOut { entry_valid: negative.as_secs(), entry_valid_nsec: negative.subsec_nanos(), ..EntryOut::default() };
        (!negative.is_zero()).then_some(entry)
    }

    /// For how long names in `parent` may be believed; `attr` means nothing in it.
    pub(in crate::host) fn names_hold(&self, parent: NodeId) -> Timeouts {
        let t = self.options.timeouts;
        let Some(watch) = self.watch() else { return t };
        let quiet = self.handle_of(parent).and_then(|(device, handle)| watch.names_hold(device, &handle));
        let at_most = quiet.map_or(unwatched(), |quiet| Timeouts { entry: quiet, negative: quiet, attr: quiet });
        Timeouts { entry: t.entry.min(at_most.entry), negative: t.negative.min(at_most.negative), ..t }
    }

    /// For how long the attributes of `node` may be believed.
    pub(in crate::host) fn attributes_hold(&self, node: NodeId, attr: &Attr) -> Duration {
        let max = self.options.timeouts.attr;
        let Some(watch) = self.watch() else { return max };
        // What is changed through a name in a directory that the guest does not know is not seen.
        let may_be_elsewhere = attr.nlink > 1 && !is_directory(attr.mode);
        let hold = || self.by_event(node, |file| watch.attributes_hold(file, ctime_ns(attr)))?;
        let quiet = if may_be_elsewhere { None } else { hold() };
        max.min(quiet.unwrap_or(unwatched().attr))
    }

    /// The flag for OPEN of what no other process changed lately: what the guest's cache has of it stays.
    pub(in crate::host) fn kept_flags(&self, node: NodeId) -> u32 {
        let Some(watch) = self.watch() else { return 0 };
        let is_quiet = self.by_event(node, |file| !watch.has_changed(file)) == Some(true);
        if is_quiet { open_flags::KEEP_CACHE } else { 0 }
    }

    /// As `kept_flags`, for a directory: the guest may keep its entries too.
    pub(in crate::host) fn kept_directory_flags(&self, node: NodeId) -> u32 {
        let kept = self.kept_flags(node);
        if kept != 0 { kept | open_flags::CACHE_DIR } else { 0 }
    }
}
