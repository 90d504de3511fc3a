//! For how long the guest may believe what it is told of one file: the share's timeouts, and with `--watch` less
//! for what other processes of the host changed lately.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::cache::{CachePolicy, Timeouts};
use super::share::Share;
use crate::fuse::abi::{Attr, EntryOut, open_flags};
use crate::sys::file_handle::{self, Handle};
use crate::types::NodeId;

/// What `--cache auto` allows, for files that the watch does not know enough of.
fn unwatched() -> Timeouts {
    Timeouts::of(CachePolicy::Auto)
}

/// A directory that is watched.
#[derive(Debug)]
pub(super) struct Watched {
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
        let identity = self.inodes.identity(node).ok()?;
        let asked = || file_handle::of(self.path_fd(node).ok()?.as_fd(), c"").ok()?.map(|(handle, _)| handle);
        Some((identity.device, identity.handle.or_else(asked)?))
    }

    /// Watches the directory `node`, which the guest knows from now on.
    pub(super) fn watch_directory(&self, node: NodeId) {
        let Some(watch) = self.watch() else { return };
        match self.handle_of(node) {
            Some((device, handle)) if watch.lacks(device, &handle) => {
                if let Ok(fd) = self.path_fd(node) {
                    watch.cover(device, &handle, fd.as_fd());
                }
            }
            Some(_) => {}
            None => watch.give_up(),
        }
    }

    /// What it takes to end the watch over `node`, which the guest may be about to forget.
    pub(super) fn watched(&self, node: NodeId) -> Option<Watched> {
        let watch = self.watch().filter(|_| self.kind(node) == Ok(libc::S_IFDIR))?;
        let (device, handle) = self.handle_of(node).filter(|(device, handle)| !watch.lacks(*device, handle))?;
        Some(Watched { device, handle, fd: self.path_fd(node).ok()? })
    }

    /// Ends the watch over a directory that the guest forgot.
    pub(super) fn unwatch(&self, watched: Option<Watched>) {
        if let (Some(watch), Some(w)) = (self.watch(), watched) {
            watch.uncover(w.device, &w.handle, w.fd.as_fd());
        }
    }

    /// The answer to a LOOKUP of a name that is not in `parent`: `None` where the guest may not keep it, which
    /// makes the answer ENOENT.
    pub(super) fn no_entry(&self, parent: NodeId) -> Option<EntryOut> {
        let negative = self.names_hold(parent).negative;
        let entry = EntryOut { entry_valid: negative.as_secs(), entry_valid_nsec: negative.subsec_nanos(), ..EntryOut::default() };
        (!negative.is_zero()).then_some(entry)
    }

    /// For how long names in `parent` may be believed; `attr` means nothing in it.
    pub(super) fn names_hold(&self, parent: NodeId) -> Timeouts {
        let t = self.options.timeouts;
        let Some(watch) = self.watch() else { return t };
        let quiet = self.handle_of(parent).and_then(|(device, handle)| watch.names_hold(device, &handle));
        let at_most = quiet.map_or(unwatched(), |quiet| Timeouts { entry: quiet, negative: quiet, attr: quiet });
        Timeouts { entry: t.entry.min(at_most.entry), negative: t.negative.min(at_most.negative), ..t }
    }

    /// For how long the attributes of `node` may be believed.
    pub(super) fn attributes_hold(&self, node: NodeId, attr: &Attr) -> Duration {
        let max = self.options.timeouts.attr;
        let Some(watch) = self.watch() else { return max };
        // What is changed through a name in a directory that the guest does not know is not seen.
        let may_be_elsewhere = attr.nlink > 1 && !is_directory(attr.mode);
        let handle = if may_be_elsewhere { None } else { self.handle_of(node) };
        let quiet = handle.and_then(|(_, handle)| watch.attributes_hold(&handle, ctime_ns(attr)));
        max.min(quiet.unwrap_or(unwatched().attr))
    }

    /// The flag for OPEN of what no other process changed lately: what the guest's cache has of it stays.
    pub(super) fn kept_flags(&self, node: NodeId) -> u32 {
        let Some(watch) = self.watch() else { return 0 };
        let is_quiet = self.handle_of(node).is_some_and(|(_, handle)| !watch.has_changed(&handle));
        if is_quiet { open_flags::KEEP_CACHE } else { 0 }
    }

    /// As `kept_flags`, for a directory: the guest may keep its entries too.
    pub(super) fn kept_directory_flags(&self, node: NodeId) -> u32 {
        let kept = self.kept_flags(node);
        if kept != 0 { kept | open_flags::CACHE_DIR } else { 0 }
    }
}
