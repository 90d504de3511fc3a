//! gatherfsd: reads the command line, confines the process, serves the share.
#![forbid(unsafe_code)]
#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod serving;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use gatherfs::config::{self, Arguments, Checked, Deprecation, KeptDescriptors, Listening, ParseError, SocketFile};
use gatherfs::host::{Descriptors, FileSystemWatch, Share};
use gatherfs::keeper::{self, Examiner, Keeper, Kept, Start, Taken, Turn};
use gatherfs::outer::{self, ControlSocket, Herald, KeeperEnd, Notify, Outer};
use gatherfs::sandbox::{self, Confined, Entered, Jail, Mode, Reach};
use gatherfs::state::RequestRecords;
use gatherfs::sys::working_dir::DescriptorDir;
use gatherfs::sys::{descriptor, identity, signal, stat};
use gatherfs::trace::{self, Destination};

use serving::{AnyError, Exported, serve, status_of};

/// Exit status of a command line that makes no sense.
const EXIT_USAGE: u8 = 2;

/// Descriptors that the process's table has room for from the start, at most: 32 KiB of the kernel's memory. A daemon that opens
/// more waits for the kernel each time that their number doubles.
const ROOM_MAX: usize = 4096;

fn main() -> ExitCode {
    // Our own bug. A VMM that sees its connection closed is better off than one with a queue that hangs.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
    if let Some((taken, examiner)) = keeper::handed_over() {
        return take_over(taken.map_err(AnyError::from), examiner);
    }
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
    let kept = config::kept_descriptors();
    let syslog = start_log(&arguments);
    for deprecation in config::deprecations(&arguments) {
        match deprecation {
            Deprecation::Warn(text) => tracing::warn!("{text}"),
            Deprecation::Info(text) => tracing::info!("{text}"),
        }
    }
    let is_root = rustix::process::geteuid().is_root();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let begun = config::with_inherited_socket(arguments).and_then(|arguments| {
        let checked = config::check(&arguments, is_root, cpus)?;
        Ok((checked, Origin { line: arguments.line, is_root, cpus, syslog, kept }))
    });
    let (checked, origin) = match begun {
        Ok(begun) => begun,
        Err(e) => return fail(&e, EXIT_USAGE),
    };
    signal::ignore_file_size_limit();
    match signal::hold().map_err(AnyError::from).and_then(|()| start(checked, origin)) {
        Ok(code) => code,
        Err(e) => fail(e.as_ref(), 1),
    }
}

/// What this process knows of its start that another program in its place could not find out.
struct Origin {
    line: Vec<OsString>,
    is_root: bool,
    cpus: usize,
    syslog: Option<(RawFd, u32)>,
    /// The session of an earlier process, as a service manager has kept it.
    kept: KeptDescriptors,
}

/// Starts the log. Returns the socket of the syslog daemon, and the id by which that one knows this process.
fn start_log(arguments: &Arguments) -> Option<(RawFd, u32)> {
    let level = arguments.log_level().as_str();
    let destination = if arguments.syslog { Destination::Syslog(Path::new(trace::SYSLOG_SOCKET)) } else { Destination::StandardError };
    trace::start(level, destination).unwrap_or_else(|e| {
        tracing::warn!("--syslog: cannot log to {}: {e}; the log goes to standard error", trace::SYSLOG_SOCKET);
        None
    })
}

fn fail(e: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("gatherfsd: {e}");
    ExitCode::from(code)
}

/// Listens, confines the process and serves. In the outer process, ends with the one inside.
fn start(checked: Checked, origin: Origin) -> Result<ExitCode, AnyError> {
    // Taken out of the environment in any case.
    let notify = Notify::from_environment();
    let (listener, mut socket) = config::listen(&checked.listening)?;
    let control = socket.add_control(&checked.control).inspect_err(|_| socket.remove())?;
    // Before the sandbox, which drops the capability that it takes.
    let whole = if checked.watch { FileSystemWatch::open(&checked.share.shared_dir) } else { None };
    let open_files = sandbox::raise_open_files(checked.open_files);
    sandbox::raise_file_size();
    if checked.io.pins_memory {
        sandbox::raise_locked_memory();
    }
    let is_confined = checked.sandbox.mode != Mode::None;
    let entered = open_files.map_err(AnyError::from).and_then(|open_files| {
        let ways = outer_or_herald(&checked, is_confined, control, notify, origin.kept.last().map_or(0, |(number, _)| number + 1))?;
        Ok((ways, sandbox::enter(&checked.sandbox, &checked.share.shared_dir)?, Descriptors::of(open_files, checked.queues)))
    });
    let (channel, herald, jail, descriptors) = match entered {
        Ok((Ways::Alone(herald), Entered::Inside(jail), descriptors)) => (None, herald, jail, descriptors),
        Ok((Ways::WithOuter(outer, channel, store), Entered::Inside(jail), descriptors)) => {
            drop(outer);
            socket.leave();
            if checked.has_keeper {
                (Some((channel, store)), Herald::Nobody, jail, descriptors)
            } else {
                (None, Herald::Outer(channel), jail, descriptors)
            }
        }
        Ok((ways, Entered::Outside(inside), _)) => {
            // The other process's: the socket refuses connections when that has ended.
            drop((listener, whole));
            return wait_outside(ways, &inside, socket, origin);
        }
        Err(e) => {
            socket.remove();
            return Err(e);
        }
    };
    let (exported, start, kept) = match export(checked, descriptors, jail, whole, &socket, origin) {
        Ok(exported) => exported,
        Err(e) => {
            socket.remove();
            return Err(e);
        }
    };
    if let Some((channel, store)) = channel {
        let start = start.map(|start| Start { store, ..start });
        return start_keeper((listener, socket), exported, channel, start, kept);
    }
    if !kept.is_empty() {
        tracing::warn!(
            "the session that the service manager has kept is not gone on with: there is no keeper; the VMM has to connect again"
        );
    }
    drop(kept);
    let served = serve(&listener, exported, None, herald);
    socket.remove();
    served.map(|()| ExitCode::SUCCESS)
}

/// Which processes there are to be, apart from workers.
enum Ways {
    /// This one.
    Alone(Herald),
    /// This one outside and another one inside, which has the other end of the channel, and where descriptors are given to be kept.
    WithOuter(Box<Outer>, KeeperEnd, Option<OwnedFd>),
}

fn outer_or_herald(
    checked: &Checked,
    is_confined: bool,
    control: Option<ControlSocket>,
    mut notify: Option<Notify>,
    kept: usize,
) -> std::io::Result<Ways> {
    if !is_confined && !checked.sandbox.has_outer {
        notify.iter_mut().for_each(|notify| outer::forget(notify, 0..kept));
        return Ok(Ways::Alone(notify.map_or(Herald::Nobody, |notify| Herald::Manager(notify.into()))));
    }
    let (outer, channel, store) = Outer::prepare(outer::Options {
        has_keeper: checked.has_keeper,
        is_confined,
        in_user_namespace: checked.sandbox.mode == Mode::Namespace && !rustix::process::geteuid().is_root(),
        tag: checked.tag.clone(),
        control,
        notify,
        kept,
    })?;
    Ok(Ways::WithOuter(Box::new(outer), channel, store))
}

/// Waits for the end of the process inside, whose status becomes the exit status.
fn wait_outside(ways: Ways, inside: &Confined, mut socket: SocketFile, origin: Origin) -> Result<ExitCode, AnyError> {
    let Ways::WithOuter(mut outer, channel, store) = ways else { return Err("there is no outer process".into()) };
    outer.forget_kept();
    drop((channel, store, origin));
    let ended = outer.wait_for(inside.process, inside.oom_score);
    socket.remove();
    Ok(ExitCode::from(u8::try_from(ended?).unwrap_or(1)))
}

/// Opens the share, and gives up files outside of it.
fn export(
    checked: Checked,
    descriptors: Descriptors,
    jail: Jail,
    whole: Option<FileSystemWatch>,
    socket: &SocketFile,
    origin: Origin,
) -> Result<(Exported, Option<Start>, KeptDescriptors), AnyError> {
    let root = jail.share.try_clone()?;
    let listing = jail.descriptor_dir.listing()?;
    let (share_fd, descriptor_dir) = (jail.share.as_raw_fd(), jail.descriptor_dir.number());
    descriptor::make_room(root.as_fd(), descriptors.recent.min(ROOM_MAX));
    let share = Share::export(checked.share.clone(), descriptors, jail.share, jail.descriptor_dir)?;
    let reach = Reach { share: root.as_fd(), by_handle: share.opens_handles(), removable: socket.directory() };
    let has_landlock = sandbox::restrict_files(&reach)?;
    let Origin { line, is_root, cpus, syslog, kept } = origin;
    let root = stat::of(root.as_fd()).ok().map(|st| (stat::device(&st), st.stx_ino, stat::birth_ns(&st)));
    let records = RequestRecords::new()?;
    let start = records.descriptor().map(|fd| Start {
        line,
        is_root,
        cpus,
        share: share_fd,
        descriptor_dir,
        listing,
        watch: whole.as_ref().map(FileSystemWatch::parts),
        records: fd.as_raw_fd(),
        has_landlock,
        syslog,
        root,
        store: None,
    });
    Ok((Exported { checked, share, whole, has_landlock, records }, start, kept))
}

/// Has `exported` and `start` be those of the session of an earlier process, which `kept` makes up, if that can be gone on with.
fn go_on(kept: KeptDescriptors, exported: &mut Exported, start: &mut Start) -> Option<Kept> {
    let root = start.root.filter(|_| !kept.is_empty())?;
    let kept = Kept::take(kept, &start.line, root)
        .inspect_err(|e| {
            tracing::warn!("the session that the service manager has kept is not gone on with: {e}; the VMM has to connect again");
        })
        .ok()?;
    tracing::warn!("the daemon before has died; its VMM's session goes on");
    start.records = kept.records.descriptor()?.as_raw_fd();
    exported.records = Arc::clone(&kept.records);
    Some(kept)
}

/// Goes on where another program has stopped, or says to `examiner` that this one can.
fn take_over(taken: Result<Taken, AnyError>, examiner: Option<Examiner>) -> ExitCode {
    let prepared = taken.and_then(|taken| prepare(taken, examiner.is_none()));
    let Some(examiner) = examiner else {
        let served = prepared.and_then(|(keeper, exported)| run(keeper, None, exported));
        return served.unwrap_or_else(|e| fail(e.as_ref(), 1));
    };
    let why = prepared.err().map(|e| e.to_string());
    let said = examiner.say(why.as_deref().map_or(Ok(()), Err));
    if why.is_none() && said.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What another program had when it stopped, as this one has it. Does all that this one does before it starts a worker: a call that the
/// sandbox forbids is to be found by the examination.
fn prepare(taken: Taken, logs: bool) -> Result<(Keeper, Exported), AnyError> {
    identity::keep_capabilities().map_err(|errno| std::io::Error::from_raw_os_error(errno.raw()))?;
    let start = &taken.start;
    let arguments = config::parse_line(start.line.clone())?;
    let syslog = start.syslog.map(|(fd, pid)| descriptor::inherited(fd).map(|fd| (fd, pid))).transpose()?;
    let destination = syslog.map_or(Destination::StandardError, |(fd, pid)| Destination::SyslogSocket(fd, pid));
    trace::start(if logs { arguments.log_level().as_str() } else { "off" }, destination)?;
    let checked = config::check(&arguments, start.is_root, start.cpus)?;
    let (root, descriptor_dir) = (descriptor::inherited(start.share)?, descriptor::inherited(start.descriptor_dir)?);
    let descriptors = Descriptors::of(sandbox::open_files(), checked.queues);
    let share = Share::export(checked.share.clone(), descriptors, root, DescriptorDir::of(descriptor_dir))?;
    let records = RequestRecords::attach(descriptor::inherited(start.records)?)?;
    let watch = |(fd, device)| descriptor::inherited(fd).map(|group| FileSystemWatch::of(group, device));
    let whole = start.watch.map(watch).transpose()?;
    let mut first = vec![0, 1, 2, start.records];
    share.name_descriptors(&mut first);
    first.extend(start.watch.into_iter().map(|(fd, _)| fd).chain(start.syslog.map(|(fd, _)| fd)));
    let exported = Exported { checked, share, whole, has_landlock: start.has_landlock, records };
    let keeper = Keeper::taking_over(taken, Arc::clone(&exported.records), first)?;
    Ok((keeper.retaining(exported.checked.reconnect_timeout), exported))
}

/// Becomes the keeper, which starts workers, which serve. Each descriptor belongs to one process: they share their table.
fn start_keeper(
    (listener, socket): (UnixListener, SocketFile),
    mut exported: Exported,
    channel: KeeperEnd,
    mut start: Option<Start>,
    kept: KeptDescriptors,
) -> Result<ExitCode, AnyError> {
    let Checked { keep_listening, reconnect_timeout, .. } = exported.checked;
    let going_on = &mut exported;
    let started = move || -> Result<Keeper, AnyError> {
        if let Listening::Path { .. } = going_on.checked.listening {
            // A connection that waits may be gone when it is accepted.
            listener.set_nonblocking(true)?;
        }
        let sandbox = &going_on.checked.sandbox;
        sandbox::seal_keeper(sandbox.seccomp, sandbox.mode.root())?;
        // Under the list of system calls: a worker that a guest has taken over may have made it up.
        let kept = start.as_mut().and_then(|start| go_on(kept, going_on, start));
        let keeper = Keeper::new(listener, keep_listening, Arc::clone(&going_on.records), channel, start)?.retaining(reconnect_timeout);
        Ok(if let Some(kept) = kept { keeper.restoring(kept) } else { keeper })
    };
    run(started()?, Some(socket), exported)
}

/// Runs the keeper, or a worker that it has started.
fn run(keeper: Keeper, socket: Option<SocketFile>, exported: Exported) -> Result<ExitCode, AnyError> {
    match keeper.run()? {
        Turn::Worker(end) => {
            // The keeper's: the lock of the pid file.
            std::mem::forget(socket);
            let served = serve(&end, exported, Some(&end), Herald::Nobody);
            end.say_leaving()?;
            // What was handed over and not taken is for the next worker, too.
            std::mem::forget(end);
            Ok(served.map_or_else(|e| fail(e.as_ref(), status_of(e.as_ref())), |()| ExitCode::SUCCESS))
        }
        Turn::Ended(end) => {
            // The worker's.
            std::mem::forget(exported);
            Ok(ExitCode::from(u8::try_from(end.shell_status()).unwrap_or(1)))
        }
    }
}
