//! Which pages of an address space are still to come, and to where: the program may have moved them since the frame was taken.

use std::collections::BTreeMap;

use crate::image::{Piece, Source};
use crate::restore::ranges::Ranges;

/// Consecutive bytes that are to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Where they are to come to.
    pub address: u64,
    /// Where they were when the frame was taken, which is their offset in the object.
    pub origin: u64,
    /// How many there are; never zero.
    pub len: u64,
}

impl Stretch {
    fn end(&self) -> u64 {
        self.address + self.len
    }

    /// The part from `start` to `end`, addresses inside.
    fn part(&self, start: u64, end: u64) -> Stretch {
        Stretch { address: start, origin: self.origin + (start - self.address), len: end - start }
    }
}

/// The pages still to come. Memory that lay together and has not been touched is one entry, however many runs hold it.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    by_address: BTreeMap<u64, Stretch>,
    /// Addresses by origin: each byte comes to one address at most.
    by_origin: BTreeMap<u64, u64>,
}

impl Pending {
    /// What of the `runs` of an object, sorted by offset, is data and lies in `ranges`.
    pub fn of(runs: &[Piece], ranges: &Ranges) -> Pending {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        let mut add = |start, end| match joined.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => joined.push((start, end)),
        };
        for run in runs.iter().filter(|run| run.source != Source::Zero) {
            if ranges.hold(run) {
                add(run.offset, run.end());
            } else {
                ranges.cut(run).iter().filter(|(_, inside)| *inside).for_each(|(part, _)| add(part.offset, part.end()));
            }
        }
        let stretches = joined.iter().map(|&(start, end)| Stretch { address: start, origin: start, len: end - start });
        Pending { by_address: stretches.map(|stretch| (stretch.address, stretch)).collect(), by_origin: joined.iter().map(|&(start, _)| (start, start)).collect() }
    }

    fn insert(&mut self, stretch: Stretch) {
        self.by_origin.insert(stretch.origin, stretch.address);
        self.by_address.insert(stretch.address, stretch);
    }

    fn take(&mut self, address: u64) -> Option<Stretch> {
        let stretch = self.by_address.remove(&address)?;
        self.by_origin.remove(&stretch.origin);
        Some(stretch)
    }

    /// Whether nothing is to come any more.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// How many bytes are to come.
    pub fn bytes(&self) -> u64 {
        self.by_address.values().map(|stretch| stretch.len).sum()
    }

    /// What is to come from `address` on, if something is to come there.
    pub fn at(&self, address: u64) -> Option<Stretch> {
        let (_, stretch) = self.by_address.range(..=address).next_back()?;
        (address < stretch.end()).then(|| stretch.part(address, stretch.end()))
    }

    /// The first that is to come of what was between two addresses when the frame was taken.
    pub fn of_origin(&self, start: u64, end: u64) -> Option<Stretch> {
        let before = self.by_origin.range(..=start).next_back().map(|(_, address)| &self.by_address[address]);
        if let Some(stretch) = before.filter(|stretch| start < stretch.origin + stretch.len) {
            let first = stretch.address + (start - stretch.origin);
            return Some(stretch.part(first, stretch.end().min(first + (end - start))));
        }
        let (_, address) = self.by_origin.range(start..end).next()?;
        let stretch = &self.by_address[address];
        Some(stretch.part(stretch.address, stretch.end().min(stretch.address + (end - stretch.origin))))
    }

    /// Removes all between two addresses and returns it.
    fn cut_out(&mut self, start: u64, end: u64) -> Vec<Stretch> {
        let from = self.by_address.range(..=start).next_back().map_or(start, |(&address, _)| address);
        let touched: Vec<u64> = self.by_address.range(from..end.max(from)).map(|(&address, _)| address).collect();
        let mut out = Vec::new();
        for address in touched {
            let Some(stretch) = self.take(address) else { continue };
            let (first, last) = (start.clamp(address, stretch.end()), end.clamp(address, stretch.end()));
            for (from, to, inside) in [(address, first, false), (first, last, true), (last, stretch.end(), false)] {
                match inside {
                    _ if from >= to => {}
                    true => out.push(stretch.part(from, to)),
                    false => self.insert(stretch.part(from, to)),
                }
            }
        }
        out
    }

    /// Nothing is to come between two addresses any more: it has come, was dropped or is gone.
    pub fn forget(&mut self, start: u64, end: u64) {
        self.cut_out(start, end);
    }

    /// The program has moved its memory.
    pub fn relocate(&mut self, from: u64, to: u64, len: u64) {
        let moved = self.cut_out(from, from.saturating_add(len));
        // What was to come at the new place was unmapped by the move.
        self.forget(to, to.saturating_add(len));
        for stretch in moved {
            self.insert(Stretch { address: stretch.address - from + to, ..stretch });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = 4096;

    /// Pages `first` to `first + pages`, for each of the parts.
    fn pending(parts: &[(u64, u64)]) -> Pending {
        let mut pending = Pending::default();
        parts.iter().for_each(|&(first, pages)| pending.insert(Stretch { address: first * P, origin: first * P, len: pages * P }));
        pending
    }

    /// The page that is to come to `page`.
    fn at(pending: &Pending, page: u64) -> Option<u64> {
        pending.at(page * P).map(|stretch| stretch.origin / P)
    }

    /// Where the first of the pages from `first` to `last` is to come to, which that is, and how many follow.
    fn of_origin(pending: &Pending, first: u64, last: u64) -> Option<(u64, u64, u64)> {
        pending.of_origin(first * P, last * P).map(|stretch| (stretch.address / P, stretch.origin / P, stretch.len / P))
    }

    #[test]
    fn what_is_dropped_in_the_middle_leaves_both_ends() {
        let mut pages = pending(&[(10, 10)]);
        pages.forget(13 * P, 15 * P);
        assert_eq!([12, 13, 14, 15, 19, 20].map(|page| at(&pages, page)), [Some(12), None, None, Some(15), Some(19), None]);
        assert_eq!((pages.bytes(), of_origin(&pages, 11, 30), of_origin(&pages, 13, 30)), (8 * P, Some((11, 11, 2)), Some((15, 15, 5))));
        pages.forget(0, u64::MAX);
        assert!(pages.is_empty() && of_origin(&pages, 0, 100).is_none());
    }

    #[test]
    fn what_moves_is_found_at_its_new_place_only() {
        let mut pages = pending(&[(10, 10), (100, 4)]);
        pages.relocate(12 * P, 102 * P, 3 * P);
        assert_eq!([11, 12, 14, 15].map(|page| at(&pages, page)), [Some(11), None, None, Some(15)]);
        assert_eq!([101, 102, 104, 105].map(|page| at(&pages, page)), [Some(101), Some(12), Some(14), None]);
        assert_eq!([(10, 20), (12, 13), (13, 20), (102, 110)].map(|(first, last)| of_origin(&pages, first, last)), [Some((10, 10, 2)), Some((102, 12, 1)), Some((103, 13, 2)), None]);
    }

    #[test]
    fn a_move_onto_its_own_tail_keeps_what_moved() {
        let mut pages = pending(&[(10, 4)]);
        pages.relocate(10 * P, 12 * P, 2 * P);
        assert_eq!([10, 11, 12, 13].map(|page| at(&pages, page)), [None, None, Some(10), Some(11)]);
        assert_eq!(of_origin(&pages, 12, 14), None);
    }
}
