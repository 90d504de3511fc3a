//! gatherfsd: reads the command line, confines the process, serves the share.
#![forbid(unsafe_code)]
#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use gatherfs::config::{self, Arguments, Checked, Deprecation, IoOptions, Listening, ParseError, PolicySummary, SocketFile};
use gatherfs::device::{Finishing, Frontends, Resumed, Server, ServerOptions, ServerStopper};
use gatherfs::host::{Descriptors, FileSystemWatch, Share};
use gatherfs::io::{Rings, Which};
use gatherfs::keeper::{Beginning, Inheritance, Keeper, Turn, Witness, WorkerEnd};
use gatherfs::metrics::Metrics;
use gatherfs::sandbox::{self, Entered, Jail, Mode, OptionalCalls, Reach};
use gatherfs::state::RequestRecords;
use gatherfs::sys::signal::{self, Signals};
use gatherfs::sys::{descriptor, identity, thread};
use gatherfs::trace::{self, Destination};

/// Exit status of a command line that makes no sense.
const EXIT_USAGE: u8 = 2;

/// Descriptors that the process's table has room for from the start, at most: 32 KiB of the kernel's memory. A daemon that opens
/// more waits for the kernel each time that their number doubles.
const ROOM_MAX: usize = 4096;

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    // Our own bug. A VMM that sees its connection closed is better off than one with a queue that hangs.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
    let arguments = match config::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        // Help and version, which were asked for.
        Err(ParseError::Clap(e)) if !e.use_stderr() => {
            let _ = e.print();
            return ExitCode::SUCCESS;
        }
        Err(e) => return fail(&e, EXIT_USAGE),
    };
    if arguments.print_capabilities {
        let printed = std::io::stdout().write_all(config::capabilities().as_bytes());
        return printed.map_or_else(|e| fail(&e, 1), |()| ExitCode::SUCCESS);
    }
    start_log(&arguments);
    let is_root = rustix::process::geteuid().is_root();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let checked = match config::with_inherited_socket(arguments).and_then(|arguments| config::check(&arguments, is_root, cpus)) {
        Ok(checked) => checked,
        Err(e) => return fail(&e, EXIT_USAGE),
    };
    signal::ignore_file_size_limit();
    match signal::hold().map_err(AnyError::from).and_then(|()| start(checked)) {
        Ok(code) => code,
        Err(e) => fail(e.as_ref(), 1),
    }
}

fn start_log(arguments: &Arguments) {
    let level = arguments.log_level().as_str();
    let destination = if arguments.syslog { Destination::Syslog(Path::new(trace::SYSLOG_SOCKET)) } else { Destination::StandardError };
    if let Err(e) = trace::start(level, destination) {
        tracing::warn!("--syslog: cannot log to {}: {e}; the log goes to standard error", trace::SYSLOG_SOCKET);
    }
    for deprecation in config::deprecations(arguments) {
        match deprecation {
            Deprecation::Warn(text) => tracing::warn!("{text}"),
            Deprecation::Info(text) => tracing::info!("{text}"),
        }
    }
}

fn fail(e: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("gatherfsd: {e}");
    ExitCode::from(code)
}

/// Listens, confines the process and serves. In the process that waits outside, ends with the other.
fn start(checked: Checked) -> Result<ExitCode, AnyError> {
    let (listener, mut socket) = config::listen(&checked.listening)?;
    // Before the sandbox, which drops the capability that it takes.
    let whole = if checked.watch { FileSystemWatch::open(&checked.share.shared_dir) } else { None };
    let open_files = sandbox::raise_open_files(checked.open_files);
    sandbox::raise_file_size();
    if checked.io.pins_memory {
        sandbox::raise_locked_memory();
    }
    let entered = open_files.map_err(AnyError::from).and_then(|open_files| {
        let entered = sandbox::enter(&checked.sandbox, &checked.share.shared_dir)?;
        Ok((entered, Descriptors::of(open_files)))
    });
    let (jail, descriptors) = match entered {
        Ok((Entered::Inside(jail), descriptors)) => (jail, descriptors),
        Ok((Entered::Outside(status), _)) => {
            socket.remove();
            return Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)));
        }
        Err(e) => {
            socket.remove();
            return Err(e);
        }
    };
    if checked.sandbox.mode != Mode::None {
        socket.leave();
    }
    let has_keeper = checked.has_keeper;
    let exported = match export(checked, descriptors, jail, whole, &socket) {
        Ok(exported) => exported,
        Err(e) => {
            socket.remove();
            return Err(e);
        }
    };
    if has_keeper {
        return start_keeper(listener, socket, exported);
    }
    let served = serve(&listener, exported, None);
    socket.remove();
    served.map(|()| ExitCode::SUCCESS)
}

/// A share, with what else is made before this process splits.
struct Exported {
    checked: Checked,
    share: Share,
    whole: Option<FileSystemWatch>,
    has_landlock: bool,
    /// In memory that all processes after the split have in common.
    records: Arc<RequestRecords>,
}

/// Opens the share, and gives up files outside of it.
fn export(
    checked: Checked,
    descriptors: Descriptors,
    jail: Jail,
    whole: Option<FileSystemWatch>,
    socket: &SocketFile,
) -> Result<Exported, AnyError> {
    let root = jail.share.try_clone()?;
    descriptor::make_room(root.as_fd(), descriptors.recent.min(ROOM_MAX));
    let share = Share::export(checked.share.clone(), descriptors, jail.share, jail.descriptor_dir)?;
    let reach = Reach { share: root.as_fd(), by_handle: share.opens_handles(), removable: socket.directory() };
    let has_landlock = sandbox::restrict_files(&reach)?;
    Ok(Exported { checked, share, whole, has_landlock, records: RequestRecords::new()? })
}

/// Becomes the keeper, which starts workers, which serve. Each descriptor belongs to one process: they share their table.
fn start_keeper(listener: UnixListener, mut socket: SocketFile, exported: Exported) -> Result<ExitCode, AnyError> {
    let keep_listening = exported.checked.keep_listening;
    let started = || -> Result<Keeper, AnyError> {
        if let Listening::Path { .. } = exported.checked.listening {
            // A connection that waits may be gone when it is accepted.
            listener.set_nonblocking(true)?;
        }
        sandbox::seal_keeper(exported.checked.sandbox.seccomp)?;
        Ok(Keeper::new(listener, keep_listening, Arc::clone(&exported.records))?)
    };
    match started().and_then(|keeper| Ok(keeper.run()?)) {
        Ok(Turn::Worker(end)) => {
            // The keeper's.
            std::mem::forget(socket);
            let served = serve(&end, exported, Some(&end));
            end.say_leaving()?;
            served.map(|()| ExitCode::SUCCESS)
        }
        Ok(Turn::Ended(end)) => {
            // The worker's.
            std::mem::forget(exported);
            // The socket may be in another user's directory.
            let _ = identity::take_capabilities_up();
            socket.remove();
            Ok(ExitCode::from(u8::try_from(end.shell_status()).unwrap_or(1)))
        }
        Err(e) => {
            let _ = identity::take_capabilities_up();
            socket.remove();
            Err(e)
        }
    }
}

/// The share that a worker serves, made as `model` is, and what its first session goes on with, where an earlier worker has begun it.
/// Closes what that one has left open; `own` is what this one has opened.
fn begin(end: &WorkerEnd, model: &Share, records: &RequestRecords, own: &[RawFd]) -> Result<(Share, Option<Resumed>), AnyError> {
    let Inheritance { beginning, descriptors, queues, quarantined, .. } = end.inheritance();
    let mut kept = [descriptors, own].concat();
    let goes_on = !matches!(beginning, Beginning::First | Beginning::Idle);
    let trusts = goes_on && *beginning != Beginning::Fresh;
    let recovered = match trusts.then(|| records.inherit_share_arena()).flatten() {
        Some(arena) => model
            .recovered(arena, &kept)
            .inspect_err(|e| tracing::error!("the records of the guest's files cannot be used: {e}; what it has open is lost"))
            .ok(),
        None if goes_on => {
            tracing::error!("no records of the guest's files are used; what it has open is lost");
            None
        }
        None => None,
    };
    let share = recovered.map_or_else(|| model.renewed(), Ok)?;
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
    Ok((share, goes_on.then(|| Resumed { rings: queues.clone(), finishing, quarantined: *quarantined })))
}

/// Serves one VMM after the other, or only the first. `end` leads to the keeper, if there is one.
fn serve(frontends: &impl Frontends, exported: Exported, end: Option<&WorkerEnd>) -> Result<(), AnyError> {
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
    sandbox::seal(checked.sandbox.seccomp, &optional)?;
    // An earlier worker's records are read under the list of system calls that this one has for the guest's requests.
    let (share, resumed) = match end {
        Some(end) => {
            end.say_rings(&descriptors)?;
            begin(end, &share, &records, &[&descriptors[..], &[signals.as_fd().as_raw_fd()]].concat())?
        }
        None => (ManuallyDrop::into_inner(share), None),
    };
    let is_first = resumed.is_none();
    let server = Server::new(
        share,
        ServerOptions { device, config_space, keep_listening, rings, queue_cpus: checked.queue_cpus, records, resumed },
    )?;
    let share = server.share();
    if checked.watch
        && let Err(e) = share.start_watch(ManuallyDrop::into_inner(whole))
    {
        return Err(format!("--watch: changes on the host cannot be watched here: {e}; it takes Linux 5.13, else leave it out").into());
    }
    watch_signals(signals, server.stopper(), Arc::clone(server.metrics()), end.map(WorkerEnd::witness).transpose()?)?;
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
    server.serve(frontends)?;
    tracing::debug!("metrics {}", server.metrics().to_json());
    Ok(())
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

fn watch_signals(signals: Signals, stopper: ServerStopper, metrics: Arc<Metrics>, witness: Option<Witness>) -> std::io::Result<()> {
    thread::start("signals", move || {
        // This thread lives as long as the process.
        if let Some(Err(e)) = witness.map(Witness::testify) {
            tracing::warn!("the keeper does not watch a thread: {e}");
        }
        loop {
            match signals.wait() {
                Ok(libc::SIGUSR1) => {
                    // In one write, so that no other line comes in between. The reader of standard error may have gone.
                    let line = metrics.to_json() + "\n";
                    let _ = std::io::stderr().write_all(line.as_bytes());
                }
                Ok(_) => {
                    let in_flight = stopper.stop();
                    tracing::info!("shutting down; waiting for {in_flight} requests in flight");
                }
                Err(e) => {
                    tracing::error!("signals do not come through: {e}");
                    return;
                }
            }
        }
    })?;
    Ok(())
}
