//! What is left of tables whose process died: records that cannot be trusted, and numbers of descriptors.

use std::os::fd::RawFd;

use rustc_hash::FxHashSet;

use crate::trace::Limiter;
use crate::warn_limited;

/// How far beyond every known generation a damaged record's slot goes on: its own generation may be damaged, and its true one must not
/// come again. No power of two, which is what one wrong bit makes of a number.
const GENERATION_GAP: u32 = 0x0001_0001;

/// Records of a table that are not what they were when they were made.
#[derive(Debug)]
pub struct Refused {
    kind: &'static str,
    slots: Vec<u32>,
    generation_max: u32,
    limiter: Limiter,
}

impl Refused {
    /// None yet, of a table of `kind` whose free slots begin at `generation`.
    pub fn new(kind: &'static str, generation: u32) -> Refused {
        Refused { kind, slots: Vec::new(), generation_max: generation, limiter: Limiter::new() }
    }

    /// A record with `generation` is good.
    pub fn pass(&mut self, generation: u32) {
        self.generation_max = self.generation_max.max(generation);
    }

    /// The record in `slot`, which seems to have `generation`, is not.
    pub fn add(&mut self, slot: u32, generation: u32) {
        let kind = self.kind;
        warn_limited!(self.limiter; "the record of {kind} {slot} (generation {generation}) is damaged; the guest gets an error where it uses it");
        self.pass(generation);
        self.slots.push(slot);
    }

    /// Their slots, with the generation that each is free with.
    pub fn freed(self) -> impl Iterator<Item = (u32, u32)> {
        let Refused { kind, slots, generation_max, .. } = self;
        if !slots.is_empty() {
            tracing::error!("{} damaged records of {kind}s were dropped", slots.len());
        }
        let generation = generation_max.wrapping_add(GENERATION_GAP);
        slots.into_iter().map(move |slot| (slot, generation))
    }
}

/// Those of `numbers` that are there more than once. A descriptor that two records name is neither's: closed for one, its number
/// would be a stranger's file to the other.
pub fn named_twice(mut numbers: Vec<RawFd>) -> FxHashSet<RawFd> {
    numbers.sort_unstable();
    let twice: FxHashSet<RawFd> = numbers.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    if !twice.is_empty() {
        tracing::error!("{} descriptors are named by two records each; the guest gets an error where it uses them", twice.len());
    }
    twice
}
