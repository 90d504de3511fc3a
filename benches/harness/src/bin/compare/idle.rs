//! Many daemons without requests: memory, wake-ups and CPU time.

use std::sync::Arc;
use std::time::Duration;

use gatherfs_harness::load::held::Held;
use gatherfs_harness::load::leftovers::Started;
use gatherfs_harness::load::{cpu, daemon::LAYOUT};
use gatherfs_harness::{Failure, MIB};
use gatherfs_support::guest::client::Client;
use gatherfs_support::guest::frontend::{FIRST_REQUEST, Guest, GuestOptions};

use super::daemons::{GATHERFS, Programs};
use super::text::{figure, table, whole};

/// Of this many daemons one has a guest that has mounted the share.
const MOUNTED_PART: usize = 10;

/// Daemons of one kind.
struct Fleet {
    name: &'static str,
    mounted: bool,
    daemons: Vec<Started>,
    guests: Vec<Arc<Guest>>,
}

/// What all processes of a fleet have used so far.
struct Used {
    switches: u64,
    cpu_ns: u64,
}

impl Fleet {
    fn used(&self) -> Result<Used, Failure> {
        let processes: Vec<u32> = self.daemons.iter().flat_map(|daemon| cpu::process_tree(daemon.id())).collect();
        Ok(Used { switches: cpu::switches(&processes), cpu_ns: cpu::cpu_ns(&processes)? })
    }

    fn held(&self) -> Result<Held, Failure> {
        self.daemons.iter().try_fold(Held::default(), |mut sum, daemon| {
            sum += Held::by(daemon.id())?;
            Ok(sum)
        })
    }
}

/// Starts daemons that wait for a frontend, and a tenth as many with a mounted guest.
fn fleets(programs: &Programs, count: usize) -> Result<Vec<Fleet>, Failure> {
    let share = &programs.tmpfs.path;
    let mut fleets = Vec::new();
    for (name, command) in [(GATHERFS, programs.gatherfs(false)), ("virtiofsd", programs.peer("", false))] {
        for mounted in [false, true] {
            let mut fleet = Fleet { name, mounted, daemons: Vec::new(), guests: Vec::new() };
            for index in 0..if mounted { count.div_ceil(MOUNTED_PART) } else { count } {
                let (started, socket) = programs.start(&command, &format!("i{name}{}{index}", u8::from(mounted)), share)?;
                fleet.daemons.push(started);
                if mounted {
                    let options = GuestOptions { layout: vec![(LAYOUT[0].0, 4 * MIB)], queue_size: 128, ..GuestOptions::default() };
                    let guest = Guest::connect(&socket, &options)?;
                    Client::new(&guest, FIRST_REQUEST).init()?;
                    fleet.guests.push(guest);
                }
            }
            fleets.push(fleet);
        }
    }
    Ok(fleets)
}

/// Starts `count` idle daemons of each kind, lets them settle, and looks at them for `idle`.
pub fn idle_daemons(programs: &Programs, count: usize, settle: Duration, idle: Duration) -> Result<String, Failure> {
    let fleets = fleets(programs, count)?;
    std::thread::sleep(settle);
    let before = fleets.iter().map(Fleet::used).collect::<Result<Vec<_>, _>>()?;
    std::thread::sleep(idle);
    let after = fleets.iter().map(Fleet::used).collect::<Result<Vec<_>, _>>()?;
    let mut rows = Vec::new();
    for ((fleet, before), after) in fleets.iter().zip(&before).zip(&after) {
        let held = fleet.held()?;
        let daemons = fleet.daemons.len() as f64;
        let state = if fleet.mounted { "mounted by a guest" } else { "waiting for a frontend" };
        let each = [daemons, held.proportional as f64 / daemons, held.resident as f64 / daemons, held.descriptors as f64 / daemons];
        let switches = after.switches.saturating_sub(before.switches) as f64;
        let used = [whole(switches), figure((after.cpu_ns - before.cpu_ns) as f64 / 1e6)];
        rows.push([fleet.name.to_owned(), state.to_owned()].into_iter().chain(each.map(whole)).chain(used).collect());
    }
    let head = ["daemon", "state ", "daemons", "Pss KiB each", "Rss KiB each", "descriptors each", "wake-ups of all", "CPU ms of all"];
    Ok(format!(
        "## Idle daemons\n\nAll of them at once, default configuration, the processes of the sandbox included. Wake-ups (context switches) and CPU time \
         are those of {} s without a request, {} s after the last start.\n\n{}",
        idle.as_secs(),
        settle.as_secs(),
        table(&head, &rows)
    ))
}
