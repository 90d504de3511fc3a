//! gatherfsd: reads the command line, confines the process, serves the share.
#![forbid(unsafe_code)]
#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use gatherfs::config::{self, Arguments, Checked, Deprecation, IoOptions, Listening, ParseError, PolicySummary, SocketFile};
use gatherfs::device::{Frontends, Resumed, Server, ServerOptions, ServerStopper};
use gatherfs::host::{Descriptors, FileSystemWatch, Share};
use gatherfs::io::{Rings, Which};
use gatherfs::keeper::{Beginning, Keeper, Turn, Witness, WorkerEnd};
use gatherfs::metrics::Metrics;
use gatherfs::sandbox::{self, Entered, Jail, Mode, OptionalCalls, Reach};
use gatherfs::state::RequestRecords;
use gatherfs::sys::{descriptor, identity, signal, thread};
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
    let served = serve(&listener, exported, None, None);
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
fn start_keeper(listener: UnixListener, mut socket: SocketFile, mut exported: Exported) -> Result<ExitCode, AnyError> {
    let keep_listening = exported.checked.keep_listening;
    let keeper = sandbox::seal_keeper(exported.checked.sandbox.seccomp)
        .map_err(AnyError::from)
        .and_then(|()| Ok(Keeper::new(listener, keep_listening)?));
    match keeper.and_then(|keeper| Ok(keeper.run()?)) {
        Ok(Turn::Worker(end)) => {
            // The keeper's.
            std::mem::forget(socket);
            let (share, resumed) = begin(&end, &exported)?;
            // Each worker begins with the same one: its descriptors stay open.
            std::mem::forget(std::mem::replace(&mut exported.share, share));
            let served = serve(&end, exported, Some(&end), resumed);
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

/// The share that a worker serves, and what its first session goes on with, where an earlier worker has begun it. Waits for what the
/// kernel still does for that one, and closes what it has left open.
fn begin(end: &WorkerEnd, exported: &Exported) -> Result<(Share, Option<Resumed>), AnyError> {
    let (model, records, beginning) = (&exported.share, &exported.records, end.inheritance().beginning);
    let left = records.inherit_share_arena();
    Rings::wait_for_leftover(&end.inheritance().rings)?;
    let recovered = match (beginning, left) {
        (Beginning::Recovery, Some(arena)) => model
            .recovered(arena)
            .inspect_err(|e| tracing::error!("the records of the guest's files cannot be used: {e}; what it has open is lost"))
            .ok(),
        (Beginning::Recovery, None) => {
            tracing::error!("the guest's files have no records that another process can read; what it has open is lost");
            None
        }
        _ => None,
    };
    let fuse = recovered.as_ref().map_or(0, Share::negotiated_word);
    let share = recovered.map_or_else(|| model.renewed(), Ok)?;
    if beginning != Beginning::First {
        let mut kept = end.inheritance().descriptors.clone();
        share.name_descriptors(&mut kept);
        descriptor::close_others(&mut kept)?;
    }
    end.say_ready()?;
    let goes_on = matches!(beginning, Beginning::Recovery | Beginning::Fresh);
    Ok((share, goes_on.then(|| Resumed { rings: end.inheritance().queues.clone(), fuse })))
}

/// Serves one VMM after the other, or only the first. `end` leads to the keeper; `resumed` is what the first session goes on with.
fn serve(frontends: &impl Frontends, exported: Exported, end: Option<&WorkerEnd>, resumed: Option<Resumed>) -> Result<(), AnyError> {
    let Exported { checked, share, whole, has_landlock, records } = exported;
    let (device, config_space, keep_listening) = (checked.device, checked.config_space, checked.keep_listening);
    let rings = make_rings(checked.io)?;
    let optional = OptionalCalls {
        rings: rings.as_ref().map_or_else(Vec::new, |(rings, _)| rings.descriptors()),
        registers_memory: rings.as_ref().is_some_and(|(rings, _)| rings.pins_memory()),
        binds_threads: !checked.queue_cpus.is_empty(),
    };
    let server = Server::new(
        share,
        ServerOptions { device, config_space, keep_listening, rings, queue_cpus: checked.queue_cpus, records, resumed },
    )?;
    let share = server.share();
    let signals = signal_hook::iterator::Signals::new(signal::watched())?;
    sandbox::seal(checked.sandbox.seccomp, &optional)?;
    if checked.watch
        && let Err(e) = share.start_watch(whole)
    {
        return Err(format!("--watch: changes on the host cannot be watched here: {e}; it takes Linux 5.13, else leave it out").into());
    }
    if checked.watch {
        tracing::info!("--watch sees {}", share.watch_sees());
    }
    watch_signals(signals, server.stopper(), Arc::clone(server.metrics()), end.map(WorkerEnd::witness).transpose()?)?;
    let place = match &checked.listening {
        Listening::Path { path, .. } => path.display().to_string(),
        Listening::Inherited(fd) => format!("inherited socket {fd}"),
    };
    let kept = if share.is_by_handle() { "file handles" } else { "descriptors" };
    tracing::info!("sharing {} as \"{}\" on {place} (inodes as {kept})", share.path().display(), checked.tag);
    log_policies(checked.summary, &share, has_landlock);
    if !share.fs_limits().is_empty() {
        let limits: Vec<String> = share.fs_limits().iter().map(ToString::to_string).collect();
        tracing::info!("the file system of {} has no {}", share.path().display(), limits.join(", no "));
    }
    // The first session's; from the second on it is another one.
    drop(share);
    // Kata Containers waits for this line.
    tracing::info!("Waiting for vhost-user socket connection...");
    server.serve(frontends)?;
    tracing::debug!("metrics {}", server.metrics().to_json());
    Ok(())
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

fn watch_signals(
    mut signals: signal_hook::iterator::Signals,
    stopper: ServerStopper,
    metrics: Arc<Metrics>,
    witness: Option<Witness>,
) -> std::io::Result<()> {
    thread::start("signals", move || {
        // This thread lives as long as the process.
        if let Some(Err(e)) = witness.map(Witness::testify) {
            tracing::warn!("the keeper does not watch a thread: {e}");
        }
        if let Err(e) = signal::release() {
            tracing::error!("signals do not come through: {e}");
        }
        for signal in signals.forever() {
            if signal == signal_hook::consts::SIGUSR1 {
                // In one write, so that no other line comes in between. The reader of standard error may have gone.
                let line = metrics.to_json() + "\n";
                let _ = std::io::stderr().write_all(line.as_bytes());
            } else {
                let in_flight = stopper.stop();
                tracing::info!("shutting down; waiting for {in_flight} requests in flight");
            }
        }
    })?;
    Ok(())
}
