//! What a writer said of its objects, round upon round, made into runs that do not overlap.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use super::index::join;
use super::Run;
use crate::error::{Error, Kind, Result};

/// Which claim lies over which: a later generation over an earlier one, and all of them over what the parent holds.
pub(super) type Rank = Option<u32>;

/// A run as it was handed in.
#[derive(Debug)]
struct Claim {
    run: Run,
    rank: Rank,
}

/// All claims, in the order in which they came, and what is left of objects that were cut to size.
#[derive(Debug, Default)]
pub(super) struct Layers {
    claims: Vec<Claim>,
    clips: HashMap<u32, Vec<(u64, u64)>>,
}

impl Layers {
    pub fn add(&mut self, run: Run, rank: Rank) {
        let last = self.claims.last_mut().filter(|last| last.rank == rank);
        if !last.is_some_and(|last| join(&mut last.run, &run)) {
            self.claims.push(Claim { run, rank });
        }
    }

    /// Keeps of an object only what lies in `live`, ranges from start to end.
    pub fn clip(&mut self, object: u32, live: &[(u64, u64)]) -> Result<()> {
        let sorted = live.windows(2).all(|pair| pair[0].1 <= pair[1].0) && live.iter().all(|(start, end)| start < end);
        if !sorted {
            let what = format!("object {object} cannot be cut to size; give ranges that are sorted, disjoint and not empty");
            return Err(Error::new(Kind::Usage, what));
        }
        match self.clips.insert(object, live.to_vec()) {
            None => Ok(()),
            Some(_) => Err(Error::new(Kind::Usage, format!("object {object} was cut to size twice; do it once"))),
        }
    }

    /// The runs that are to be seen from above, sorted by object and offset; refuses claims of one rank that overlap.
    pub fn flatten(mut self) -> Result<Vec<Run>> {
        self.claims.sort_unstable_by_key(|claim| (claim.run.object, claim.run.offset));
        let mut runs = Vec::with_capacity(self.claims.len());
        for claims in self.claims.chunk_by(|a, b| a.run.object == b.run.object) {
            let live = self.clips.get(&claims[0].run.object).map_or(&[(0, u64::MAX)][..], Vec::as_slice);
            sweep(claims, &mut Cutter { live, runs: &mut runs })?;
        }
        Ok(runs)
    }
}

/// Goes through the claims of one object, sorted by offset, and hands what is on top at each place to `out`.
fn sweep(claims: &[Claim], out: &mut Cutter) -> Result<()> {
    let mut open = BinaryHeap::new();
    // How far the claims of each rank reach.
    let mut ends: BTreeMap<Rank, u64> = BTreeMap::new();
    let mut from = 0;
    for (number, Claim { run, rank }) in claims.iter().enumerate() {
        if ends.insert(*rank, run.end()).is_some_and(|end| end > run.offset) {
            let what = format!("object {} was given the bytes at {:#x} twice; give each byte once a generation", run.object, run.offset);
            return Err(Error::new(Kind::Usage, what));
        }
        from = uncover(claims, &mut open, from, run.offset, out);
        open.push((*rank, Reverse(number)));
    }
    uncover(claims, &mut open, from, u64::MAX, out);
    Ok(())
}

/// Hands out what is on top between `from` and `to`; claims that have ended leave the heap.
fn uncover(claims: &[Claim], open: &mut BinaryHeap<(Rank, Reverse<usize>)>, mut from: u64, to: u64, out: &mut Cutter) -> u64 {
    while let Some((_, Reverse(number))) = open.peek() {
        let run = &claims[*number].run;
        if run.end() <= from {
            open.pop();
            continue;
        }
        if from == to {
            break;
        }
        let end = run.end().min(to);
        out.push(run.part(from, end));
        from = end;
    }
    to
}

/// Collects runs, joins neighbours, and leaves out what is not live.
struct Cutter<'a> {
    /// What is still ahead.
    live: &'a [(u64, u64)],
    runs: &'a mut Vec<Run>,
}

impl Cutter<'_> {
    /// Takes a run that starts behind all before it.
    fn push(&mut self, run: Run) {
        while let Some((&(start, end), rest)) = self.live.split_first() {
            let (from, to) = (run.offset.max(start), run.end().min(end));
            if from < to {
                self.keep(run.part(from, to));
            }
            if end > run.end() {
                break;
            }
            self.live = rest;
        }
    }

    fn keep(&mut self, run: Run) {
        if !self.runs.last_mut().is_some_and(|last| join(last, &run)) {
            self.runs.push(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Place;

    fn data(offset: u64, len: u64, block: u32, at: u32) -> Run {
        Run { object: 1, offset, len, place: Place::Data { block, at } }
    }

    fn zero(offset: u64, len: u64) -> Run {
        Run { object: 1, offset, len, place: Place::Zero }
    }

    fn held(offset: u64, len: u64) -> Run {
        Run { object: 1, offset, len, place: Place::Parent { object: 9 } }
    }

    fn layers(claims: &[(Run, Rank)]) -> Layers {
        let mut layers = Layers::default();
        claims.iter().for_each(|(run, rank)| layers.add(*run, *rank));
        layers
    }

    #[test]
    fn later_generations_lie_over_earlier_ones_and_the_parent_under_all() {
        let claims = [(zero(300, 100), Some(2)), (held(0, 1000), None), (data(100, 500, 0, 50), Some(0)), (data(200, 300, 1, 0), Some(1))];
        let seen = [held(0, 100), data(100, 100, 0, 50), data(200, 100, 1, 0), zero(300, 100), data(400, 100, 1, 200), data(500, 100, 0, 450), held(600, 400)];
        assert_eq!(layers(&claims).flatten().unwrap(), seen);
    }

    #[test]
    fn neighbours_are_joined_whatever_order_they_came_in() {
        let claims = [(data(4096, 4096, 0, 4096), Some(0)), (zero(8192, 5), Some(1)), (data(0, 4096, 0, 0), Some(3)), (zero(8197, 5), Some(0))];
        assert_eq!(layers(&claims).flatten().unwrap(), [data(0, 8192, 0, 0), zero(8192, 10)]);
    }

    #[test]
    fn one_generation_says_each_byte_once() {
        for rank in [None, Some(0), Some(7)] {
            let covered = [(zero(0, 10), rank), (zero(9, 5), rank), (zero(0, 100), Some(8))];
            let error = layers(&covered).flatten().unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains("bytes at 0x9 twice"), "{error}");
        }
    }

    #[test]
    fn what_is_not_live_is_left_out() {
        let claims = [(data(100, 400, 0, 0), Some(0)), (zero(500, 100), Some(0)), (zero(900, 50), Some(0))];
        let mut cut = layers(&claims);
        cut.clip(1, &[(0, 50), (150, 200), (200, 250), (450, 550), (590, 920), (2000, 2001)]).unwrap();
        assert_eq!(cut.flatten().unwrap(), [data(150, 100, 0, 50), data(450, 50, 0, 350), zero(500, 50), zero(590, 10), zero(900, 20)]);
        let mut gone = layers(&claims);
        gone.clip(1, &[]).unwrap();
        gone.clip(2, &[(0, 5)]).unwrap();
        assert_eq!(gone.flatten().unwrap(), []);
    }

    #[test]
    fn live_ranges_must_make_sense() {
        for live in [&[(5, 5)][..], &[(5, 4)], &[(5, 9), (8, 12)], &[(5, 9), (1, 2)]] {
            assert_eq!(Layers::default().clip(1, live).unwrap_err().kind(), Kind::Usage);
        }
        let mut twice = Layers::default();
        twice.clip(1, &[(5, 9), (9, 12)]).unwrap();
        assert!(twice.clip(1, &[]).unwrap_err().to_string().contains("twice"));
    }
}
