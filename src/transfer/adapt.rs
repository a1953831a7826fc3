//! How hard to compress: chosen block by block from what the cores and the store have been seen to do.
//!
//! For each way (as it is, zstd at a fast level, zstd at level 1) the time a byte takes to encode and the share of it that is
//! left are averaged over the last blocks that were encoded so, and one block in 64 tries each way that is not chosen. A sample
//! of 8 KiB tells which blocks are worth the work at all; the others are stored as they are, whatever is chosen. From that, from
//! the time a byte takes to read and from the speed of the store follows the pace of each way: what the cores can encode, or
//! what the store can take of what is left, whichever is less. The strongest way that keeps four fifths of the best pace is
//! chosen. So a slow store gets small frames, and a fast one is not kept waiting.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::block::Block;
use crate::image::{promising, Checksum, Compression};

/// A level that is about twice as fast as level 1, for frames that are larger by a third to a half.
const FAST: i32 = -3;
/// The ways to encode, the weakest first: a zstd level, or none.
const WAYS: [Option<i32>; 3] = [None, Some(FAST), Some(1)];
/// How much of the best pace the chosen way must keep.
const KEPT_PACE: f64 = 0.8;
/// In so many blocks, each way is tried once.
const ROUND: u64 = 64;
/// The weight of the newest block in an average.
const NEWEST: f64 = 0.125;

/// Encodes blocks; shared by all encoding threads.
pub struct Encoder {
    fixed: Option<Option<i32>>,
    cores: f64,
    /// Bytes a second that the store may be given at most.
    limit: f64,
    seen: Mutex<Seen>,
}

/// What has been seen of the data and the machine.
struct Seen {
    blocks: u64,
    chosen: usize,
    /// Of blocks that are worth it, for each way.
    ways: [Way; WAYS.len()],
    /// Which share of the blocks is worth it.
    worth: f64,
    /// Seconds to read a byte.
    reading: f64,
    /// Bytes a second that the store takes, once known.
    store: Option<f64>,
}

/// What a way costs and brings.
#[derive(Clone, Copy)]
struct Way {
    /// Seconds to encode a byte.
    seconds: f64,
    /// Bytes that are left of one.
    left: f64,
}

impl Encoder {
    /// For `cores` processors and a store that may be given `limit` bytes a second.
    pub fn new(compression: Compression, cores: usize, limit: Option<u64>) -> Encoder {
        let fixed = match compression {
            Compression::None => Some(None),
            Compression::Zstd(level) => Some(Some(level)),
            Compression::Auto => None,
        };
        Encoder { fixed, cores: cores as f64, limit: limit.map_or(f64::INFINITY, |limit| limit as f64), seen: Mutex::new(Seen::new()) }
    }

    /// Drops the zeros of a block and encodes what is left.
    pub fn encode(&self, block: &mut Block) {
        let begun = Instant::now();
        let (way, level) = match self.fixed {
            Some(level) => (0, level),
            None => self.next(),
        };
        let worth = level.map(|level| self.pack(block, level));
        if level.is_none() {
            let mut sum = Checksum::default();
            block.drop_zeros(Some(&mut sum));
            block.store(&sum);
        }
        block.encoding = begun.elapsed();
        self.learn(block, way, worth);
    }

    /// Compresses what is not zero; whether that was worth a try.
    fn pack(&self, block: &mut Block, level: i32) -> bool {
        block.drop_zeros(None);
        let worth = self.fixed.is_some() || promising(block.raw());
        if !(worth && block.pack(level)) {
            let mut sum = Checksum::default();
            sum.update(block.raw());
            block.store(&sum);
        }
        worth
    }

    /// Notes how fast the store is.
    pub fn note_store(&self, speed: Option<f64>) {
        if self.fixed.is_none() {
            self.seen().store = speed;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> (usize, Option<i32>) {
        let way = self.seen().next();
        (way, WAYS[way])
    }

    fn learn(&self, block: &Block, way: usize, worth: Option<bool>) {
        let Some((head, _)) = block.encoded().filter(|_| self.fixed.is_none()) else { return };
        let len = head.raw_len() as f64;
        let outcome = Way { seconds: block.encoding.as_secs_f64() / len, left: head.stored_len() as f64 / len };
        self.seen().learn(way, worth, outcome, block.reading.as_secs_f64() / len, self.cores, self.limit);
    }
}

impl Seen {
    /// Starts with what is common, until it is known.
    fn new() -> Seen {
        let way = |seconds, left| Way { seconds, left };
        let ways = [way(0.15e-9, 1.0), way(1.8e-9, 0.3), way(3e-9, 0.2)];
        Seen { blocks: 0, chosen: 1, ways, worth: 1.0, reading: 0.2e-9, store: None }
    }

    fn next(&mut self) -> usize {
        let turn = self.blocks % ROUND;
        self.blocks += 1;
        match turn {
            16 => (self.chosen + 1) % WAYS.len(),
            48 => (self.chosen + 2) % WAYS.len(),
            _ => self.chosen,
        }
    }

    fn learn(&mut self, way: usize, worth: Option<bool>, outcome: Way, reading: f64, cores: f64, limit: f64) {
        let blend = |old: &mut f64, new: f64| *old += (new - *old) * NEWEST;
        blend(&mut self.reading, reading);
        if let Some(worth) = worth {
            blend(&mut self.worth, f64::from(worth));
        }
        // What was stored as it is, whatever was chosen, says how long that takes.
        let way = &mut self.ways[if worth == Some(false) { 0 } else { way }];
        blend(&mut way.seconds, outcome.seconds);
        blend(&mut way.left, outcome.left);
        self.chosen = self.best(cores, limit);
    }

    fn best(&self, cores: f64, limit: f64) -> usize {
        let Some(store) = self.store else { return self.chosen };
        let paces = [0, 1, 2].map(|way| self.pace(way, cores, store.min(limit)));
        let fastest = paces.into_iter().fold(0.0, f64::max);
        paces.iter().rposition(|&pace| pace >= fastest * KEPT_PACE).unwrap_or(0)
    }

    /// Bytes a second before compression.
    fn pace(&self, way: usize, cores: f64, store: f64) -> f64 {
        let mixed = |of: fn(&Way) -> f64| self.worth * of(&self.ways[way]) + (1.0 - self.worth) * of(&self.ways[0]);
        let (seconds, left) = (mixed(|way| way.seconds), mixed(|way| way.left));
        (cores / (self.reading + seconds)).min(store / left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1e6;

    /// What is chosen after many blocks of this kind: seconds to encode a byte and what is left of it, by way.
    fn chosen(cores: f64, store: f64, limit: f64, ways: [Way; 3], worth: bool) -> usize {
        let mut seen = Seen::new();
        seen.store = Some(store);
        for _ in 0..1000 {
            let way = seen.next();
            let told = (way > 0).then_some(worth);
            let outcome = if worth { ways[way] } else { ways[0] };
            seen.learn(way, told, outcome, 0.2e-9, cores, limit);
        }
        seen.chosen
    }

    const TEXT: [Way; 3] = [Way { seconds: 0.1e-9, left: 1.0 }, Way { seconds: 1.5e-9, left: 0.3 }, Way { seconds: 3e-9, left: 0.2 }];
    const DENSE: [Way; 3] = [Way { seconds: 0.1e-9, left: 1.0 }, Way { seconds: 1.5e-9, left: 0.95 }, Way { seconds: 3e-9, left: 0.9 }];

    #[test]
    fn slow_stores_get_small_frames_and_fast_ones_are_not_kept_waiting() {
        let none = f64::INFINITY;
        assert_eq!(chosen(2.0, 50.0 * MIB, none, TEXT, true), 2);
        assert_eq!(chosen(2.0, 3000.0 * MIB, none, TEXT, true), 0);
        assert_eq!(chosen(2.0, 300.0 * MIB, none, TEXT, true), 1);
        assert_eq!(chosen(16.0, 800.0 * MIB, none, TEXT, true), 2);
        assert_eq!(chosen(2.0, 3000.0 * MIB, 50.0 * MIB, TEXT, true), 2, "a limit is as good as a slow store");
    }

    #[test]
    fn a_way_that_leaves_most_must_not_cost_much() {
        assert_eq!(chosen(1.0, 1000.0 * MIB, f64::INFINITY, DENSE, true), 0);
        assert_eq!(chosen(1.0, 100.0 * MIB, f64::INFINITY, DENSE, true), 2);
    }

    #[test]
    fn all_ways_are_tried_again_and_again() {
        let mut seen = Seen::new();
        let tried: Vec<usize> = (0..ROUND).map(|_| seen.next()).collect();
        assert!((0..WAYS.len()).all(|way| tried.contains(&way)));
        assert!(tried.iter().filter(|&&way| way != seen.chosen).count() == 2);
    }

    #[test]
    fn nothing_is_decided_before_the_store_is_known() {
        let mut seen = Seen::new();
        (0..50).for_each(|_| seen.learn(2, Some(true), TEXT[2], 0.2e-9, 2.0, f64::INFINITY));
        assert_eq!(seen.chosen, 1);
    }
}
