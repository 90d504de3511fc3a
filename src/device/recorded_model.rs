//! The record protocol under a model checker (shuttle): the code of `recorded.rs`, of the records and of the ring itself, with a
//! driver and serving threads that are modelled, and deaths of the process. Each crash point is one at which another thread may run
//! and at which the process may die; memory is sequentially consistent. The driver checks that each head comes back once.
#![cfg(test)]

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use shuttle::rand::Rng;
use shuttle::sync::Mutex;
use shuttle::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use shuttle::thread;
use vm_memory::{Bytes, GuestAddress};

use super::recorded;
use crate::guest::{GuestMap, MappedMemory, RingMemory};
use crate::state::{Phase, Positions, QueueRecords, RequestRecords};
use crate::sys::failpoint::set_crash_hook;
use crate::types::QueueIndex;
use crate::virtqueue::Ring;

const SIZE: u16 = 2;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where both indexes begin: they wrap around on the way.
const START: u16 = u16::MAX - 2;
const REQUESTS: u16 = 6;
const THREADS: usize = 2;
/// Turns of the thread that kills a process, at most.
const STEPS_MAX: u32 = 100;

/// The driver: each of its heads is offered again as soon as it is back.
struct Driver {
    memory: MappedMemory,
    offered: u16,
    taken: u16,
    in_flight: [bool; SIZE as usize],
}

impl Driver {
    fn word(&self, at: u64) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(at)).unwrap())
    }

    fn offer(&mut self, head: u16) {
        let index = START.wrapping_add(self.offered);
        self.memory.write_obj(head.to_le(), GuestAddress(AVAIL + 4 + 2 * u64::from(index % SIZE))).unwrap();
        self.offered += 1;
        self.in_flight[usize::from(head)] = true;
        self.memory.write_obj(index.wrapping_add(1).to_le(), GuestAddress(AVAIL + 2)).unwrap();
    }

    /// Takes what is in the used ring.
    fn look(&mut self) {
        let new = self.word(USED + 2).wrapping_sub(START.wrapping_add(self.taken));
        assert!(new <= SIZE, "the used index went back, or too far");
        for _ in 0..new {
            let index = START.wrapping_add(self.taken);
            let head = self.word(USED + 4 + 8 * u64::from(index % SIZE));
            self.taken += 1;
            assert!(std::mem::take(&mut self.in_flight[usize::from(head)]), "head {head} came back twice");
            if self.offered < REQUESTS {
                self.offer(head);
            }
        }
    }
}

/// What the threads of one process have.
struct Life {
    ring: Ring,
    recovered: VecDeque<u16>,
    in_service: u16,
}

struct Died;

/// The state outside the processes.
struct World {
    is_dead: AtomicBool,
    deaths_left: AtomicU16,
    driver: Mutex<Driver>,
}

impl World {
    /// Another thread may run here; and the thread ends here where the process has died.
    fn step(&self) {
        thread::yield_now();
        if self.is_dead.load(Ordering::SeqCst) {
            resume_unwind(Box::new(Died));
        }
    }
}

/// A serving thread: pops, and answers, in any order with the others.
fn serve(world: &World, life: &Mutex<Life>, records: &QueueRecords) {
    loop {
        world.step();
        let mut guard = life.lock().unwrap_or_else(|_| resume_unwind(Box::new(Died)));
        world.step();
        world.driver.lock().unwrap().look();
        let head = match guard.recovered.pop_front() {
            Some(head) => Some(head),
            None if guard.ring.waiting().unwrap() > 0 => recorded::pop(&mut guard.ring, records).map(|popped| popped.unwrap().head),
            None => None,
        };
        let Some(head) = head else {
            if guard.in_service == 0 && guard.recovered.is_empty() && world.driver.lock().unwrap().taken == REQUESTS {
                return;
            }
            assert!(guard.in_service > 0 || guard.ring.waiting().unwrap() > 0, "a request is lost");
            continue;
        };
        guard.in_service += 1;
        drop(guard);
        world.step();
        let mut guard = life.lock().unwrap_or_else(|_| resume_unwind(Box::new(Died)));
        world.step();
        records.set_phase(head, if head == 0 { Phase::Withdrawn } else { Phase::Suspended });
        world.step();
        recorded::push(&mut guard.ring, records, head, 16);
        guard.in_service -= 1;
    }
}

/// Runs a process until it dies or has served everything. True for the latter.
fn live(world: &Arc<World>, memory: &Arc<RingMemory>, records: &Arc<RequestRecords>) -> bool {
    world.is_dead.store(false, Ordering::SeqCst);
    let killer = {
        let world = Arc::clone(world);
        let dies = world.deaths_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        thread::spawn(move || {
            // It dies at any time of its life.
            for _ in 0..shuttle::rand::thread_rng().gen_range(0..STEPS_MAX) {
                thread::yield_now();
            }
            world.is_dead.store(dies, Ordering::SeqCst);
        })
    };
    let queue = || records.queue(QueueIndex(1)).unwrap();
    // Whatever the frontend says of a ring that has run.
    let frontend = Positions { avail: START, used: START };
    let started = catch_unwind(AssertUnwindSafe(|| recorded::recover(memory, true, &queue(), frontend)));
    let threads = started.ok().map(|(ring, left, _)| {
        let recovered = left.into_iter().map(|(head, _)| head).collect();
        let life = Arc::new(Mutex::new(Life { ring, recovered, in_service: 0 }));
        let start = |_| {
            let (world, life, records) = (Arc::clone(world), Arc::clone(&life), queue());
            thread::spawn(move || match catch_unwind(AssertUnwindSafe(|| serve(&world, &life, &records))) {
                Ok(()) => true,
                Err(died) if died.is::<Died>() => false,
                Err(failed) => resume_unwind(failed),
            })
        };
        (0..THREADS).map(start).collect::<Vec<_>>()
    });
    // Each is waited for.
    let ended = threads.map(|threads| threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>());
    let has_served = ended.is_some_and(|ended| !ended.contains(&false));
    killer.join().unwrap();
    has_served
}

fn check(deaths: u16) {
    let memory = MappedMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
    for at in [AVAIL + 2, USED + 2] {
        memory.write_obj(START.to_le(), GuestAddress(at)).unwrap();
    }
    let map = Arc::new(GuestMap::new(memory.clone(), Arc::default()));
    let ring = Arc::new(RingMemory::new(map, SIZE, 0, AVAIL, USED).unwrap());
    let mut driver = Driver { memory, offered: 0, taken: 0, in_flight: [false; SIZE as usize] };
    (0..SIZE).for_each(|head| driver.offer(head));
    let world = Arc::new(World { is_dead: AtomicBool::new(false), deaths_left: AtomicU16::new(deaths), driver: Mutex::new(driver) });
    let of_hook = Arc::clone(&world);
    set_crash_hook(Box::new(move |_| of_hook.step()));
    let records = RequestRecords::new().unwrap();
    while !live(&world, &ring, &records) {}
    let driver = world.driver.lock().unwrap();
    assert_eq!((driver.taken, driver.in_flight), (REQUESTS, [false; SIZE as usize]));
    let left = records.queue(QueueIndex(1)).unwrap().recover();
    assert!(left.publishing.is_empty() && left.unfinished.is_empty());
}

#[test]
fn no_head_comes_back_twice_or_never_whenever_the_process_dies() {
    let schedules = std::env::var("GATHERFS_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    for deaths in 0..=3 {
        shuttle::check_random(move || check(deaths), schedules);
        shuttle::check_pct(move || check(deaths), schedules, 4);
    }
    println!("{schedules} schedules at random, as many with few preemptions, for 0 to 3 deaths");
}
