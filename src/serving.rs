//! What a process that serves does from its start to its end: it begins with what an earlier worker has left, and serves one VMM after the
//! other. Does not know how it came to be the one that serves.

use std::error::Error;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use gatherfs::config::{Checked, IoOptions, Listening, PolicySummary};
use gatherfs::device::{Finishing, Frontends, Resumed, ServeError, Server, ServerOptions};
use gatherfs::host::{FileSystemWatch, Share, ShareError};
use gatherfs::io::{Rings, Which};
use gatherfs::keeper::{self, Beginning, Inheritance, Watching, WorkerEnd};
use gatherfs::outer::Herald;
use gatherfs::sandbox::{self, OptionalCalls, RootDirectory};
use gatherfs::state::RequestRecords;
use gatherfs::sys::signal::Signals;
use gatherfs::sys::{descriptor, shortage, thread};

pub type AnyError = Box<dyn Error>;

/// A share, with what else is made before this process splits.
pub struct Exported {
    pub checked: Checked,
    pub share: Share,
    pub whole: Option<FileSystemWatch>,
    pub has_landlock: bool,
    /// In memory that all processes after the split have in common.
    pub records: Arc<RequestRecords>,
}

/// The share that a worker serves, made as `model` is, and what its first session goes on with, where an earlier worker has begun it.
/// Closes what that one has left open; `own` is what this one has opened.
fn begin(end: &WorkerEnd, model: &Share, records: &RequestRecords, own: &[RawFd]) -> Result<(Share, Option<Resumed>), AnyError> {
    let Inheritance { beginning, descriptors, queues, quarantined, .. } = end.inheritance();
    let mut kept = [descriptors, own].concat();
    let goes_on = !matches!(beginning, Beginning::First | Beginning::Idle);
    let trusts = goes_on && *beginning != Beginning::Fresh;
    let attached = match if trusts { records.inherit_share_arena()? } else { None } {
        Some(arena) if *beginning == Beginning::Restored => Some(model.restored(&arena, &kept).map(|(share, lost)| {
            tracing::warn!("{lost}");
            share
        })),
        Some(arena) => Some(model.recovered(arena, &kept)),
        None => None,
    };
    let recovered = match attached {
        Some(Ok(share)) => Some(share),
        // They are as they were.
        Some(Err(e)) if e.is_shortage() => return Err(e.into()),
        Some(Err(e)) => {
            tracing::error!("the records of the guest's files cannot be used: {e}; what it has open is lost");
            None
        }
        None if goes_on => {
            tracing::error!("no records of the guest's files are used; what it has open is lost");
            None
        }
        None => None,
    };
    if recovered.is_none() && *beginning != Beginning::First {
        // What the guest had open is lost, and there may be no descriptor left for what follows.
        descriptor::close_others(&mut kept)?;
    }
    let share = ManuallyDrop::new(recovered.map_or_else(|| model.renewed(), Ok)?);
    // Before the number that was named is closed.
    records.set_share_arena(share.arena());
    if *beginning != Beginning::First {
        share.name_descriptors(&mut kept);
        descriptor::close_others(&mut kept)?;
    }
    end.say_ready()?;
    let finishing = match beginning {
        Beginning::OneByOne => Finishing::OneByOne,
        Beginning::Careful | Beginning::Fresh => Finishing::GivenUp,
        _ => Finishing::AtOnce,
    };
    Ok((ManuallyDrop::into_inner(share), goes_on.then(|| Resumed { rings: queues.clone(), finishing, quarantined: *quarantined })))
}

/// Serves one VMM after the other, or only the first. `end` leads to the keeper, if there is one; else `herald` is told.
///
/// Where a worker returns an error, what the guest has open stays open: the next worker has the same table of descriptors.
pub fn serve(frontends: &impl Frontends, exported: Exported, end: Option<&WorkerEnd>, herald: Herald) -> Result<(), AnyError> {
    let Exported { checked, share, whole, has_landlock, records } = exported;
    // What was open when the keeper started its first worker stays open for the next one.
    let (share, whole) = (ManuallyDrop::new(share), ManuallyDrop::new(whole));
    let (device, config_space, keep_listening) = (checked.device, checked.config_space, checked.keep_listening);
    if let Some(end) = end {
        Rings::wait_for_leftover(&end.inheritance().rings)?;
    }
    let rings = make_rings(checked.io)?;
    let descriptors = rings.as_ref().map_or_else(Vec::new, |(rings, _)| rings.descriptors());
    let optional = OptionalCalls {
        registers_memory: rings.as_ref().is_some_and(|(rings, _)| rings.pins_memory()),
        binds_threads: !checked.queue_cpus.is_empty(),
        rings: descriptors.clone(),
    };
    let signals = Signals::new()?;
    let root = if end.is_some() { RootDirectory::Host } else { checked.sandbox.mode.root() };
    sandbox::seal(checked.sandbox.seccomp, root, &optional)?;
    // An earlier worker's records are read under the list of system calls that this one has for the guest's requests.
    let (share, resumed) = match end {
        Some(end) => {
            end.say_rings(&descriptors)?;
            begin(end, &share, &records, &[&descriptors[..], &[signals.as_fd().as_raw_fd()]].concat())?
        }
        None => (ManuallyDrop::into_inner(share), None),
    };
    let is_first = resumed.is_none();
    let server = ManuallyDrop::new(Server::new(
        share,
        ServerOptions { device, config_space, keep_listening, rings, queue_cpus: checked.queue_cpus, records, resumed },
    )?);
    let share = server.share();
    if checked.watch
        && let Err(e) = share.start_watch(ManuallyDrop::into_inner(whole))
    {
        return Err(format!("--watch: changes on the host cannot be watched here: {e}; it takes Linux 5.13, else leave it out").into());
    }
    let herald = Arc::new(herald);
    let watching = Watching {
        stopper: server.stopper(),
        metrics: Arc::clone(server.metrics()),
        witness: end.map(WorkerEnd::witness).transpose()?,
        herald: Arc::clone(&herald),
    };
    thread::start("signals", move || watching.run(&signals))?;
    if is_first {
        let place = match &checked.listening {
            Listening::Path { path, .. } => path.display().to_string(),
            Listening::Inherited(fd) => format!("inherited socket {fd}"),
        };
        log_start(&share, &checked.tag, &place);
        if checked.watch {
            tracing::info!("--watch sees {}", share.watch_sees());
        }
        log_policies(checked.summary, &share, has_landlock);
        // Kata Containers waits for this line.
        tracing::info!("Waiting for vhost-user socket connection...");
    }
    // The first session's; from the second on it is another one.
    drop(share);
    herald.ready();
    let served = server.serve(frontends);
    herald.stopping();
    if served.is_err() && end.is_some() {
        return Ok(served?);
    }
    let server = ManuallyDrop::into_inner(server);
    served?;
    tracing::debug!("metrics {}", server.metrics().to_json());
    Ok(())
}

/// The exit status of a worker that ends with the error `e`.
pub fn status_of(e: &(dyn Error + 'static)) -> u8 {
    let passes = e.downcast_ref::<io::Error>().is_some_and(shortage::is_one)
        || e.downcast_ref::<ShareError>().is_some_and(ShareError::is_shortage)
        || e.downcast_ref::<ServeError>().is_some_and(ServeError::is_shortage);
    if passes { keeper::SHORTAGE } else { 1 }
}

/// Logs what is shared, where, and what its file system lacks.
fn log_start(share: &Share, tag: &str, place: &str) {
    let kept = if share.is_by_handle() { "file handles" } else { "descriptors" };
    tracing::info!("sharing {} as \"{tag}\" on {place} (inodes as {kept})", share.path().display());
    if !share.fs_limits().is_empty() {
        let limits: Vec<String> = share.fs_limits().iter().map(ToString::to_string).collect();
        tracing::info!("the file system of {} has no {}", share.path().display(), limits.join(", no "));
    }
}

/// The rings of the request queues; none where the kernel forbids io_uring, which is an error where it is required.
fn make_rings(options: IoOptions) -> Result<Option<(Arc<Rings>, Which)>, AnyError> {
    if options.rings == 0 {
        return Ok(None);
    }
    match Rings::new(options.rings, options.pins_memory) {
        Ok(rings) => Ok(Some((Arc::new(rings), options.which))),
        Err(e) if options.is_required() => Err(format!("--io-engine uring: {e}; else leave it out").into()),
        Err(e) => {
            tracing::warn!(
                "direct I/O is done without io_uring, which cannot be used: {e}; --io-engine sync turns it off without this warning"
            );
            Ok(None)
        }
    }
}

/// Logs the policies in force, and what is turned off, by an option or because the host does not have it.
fn log_policies(summary: PolicySummary, share: &Share, has_landlock: bool) {
    let mut off = summary.turned_off;
    if share.refuses_handles() {
        off.push("file handles (the host refuses open_by_handle_at; each inode that the guest knows keeps a descriptor open)".to_owned());
    }
    if !has_landlock {
        off.push("Landlock (the kernel has none)".to_owned());
    }
    let off = if off.is_empty() { "nothing".to_owned() } else { off.join(", ") };
    tracing::info!("{}; turned off: {off}", summary.policies);
}
