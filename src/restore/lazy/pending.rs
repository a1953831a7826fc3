//! Which pages of an address space are still to come, and from where.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::image::{BlockId, Piece, Source};

/// Consecutive bytes of a block that are to come to consecutive addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// The block that holds them.
    pub block: BlockId,
    /// Offset into its raw content.
    pub at: u32,
}

/// Blocks in the order in which they are brought in: the newest frame first, and what was written last, which is what changed
/// last, first.
type Rank = (u32, Reverse<u32>);

fn rank(block: BlockId) -> Rank {
    (block.frame, Reverse(block.block))
}

/// The pages still to come, by address and by block.
#[derive(Debug, Clone, Default)]
pub struct Pending {
    by_address: BTreeMap<u64, Extent>,
    by_block: BTreeSet<(Rank, u64)>,
}

impl Pending {
    /// Adds a piece of the chain; the object's offset is the address.
    pub fn add(&mut self, piece: &Piece) {
        if let Source::Data { block, at } = piece.source {
            self.insert(piece.offset, Extent { len: piece.len, block, at });
        }
    }

    fn insert(&mut self, address: u64, extent: Extent) {
        self.by_block.insert((rank(extent.block), address));
        self.by_address.insert(address, extent);
    }

    fn take(&mut self, address: u64) -> Option<Extent> {
        let extent = self.by_address.remove(&address)?;
        self.by_block.remove(&(rank(extent.block), address));
        Some(extent)
    }

    /// Whether nothing is to come any more.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// How many bytes are to come.
    pub fn bytes(&self) -> u64 {
        self.by_address.values().map(|extent| extent.len).sum()
    }

    /// What is to come from `address` on, if something is to come there.
    pub fn at(&self, address: u64) -> Option<Extent> {
        let (&start, &extent) = self.by_address.range(..=address).next_back()?;
        (address - start < extent.len).then(|| behind(extent, address - start))
    }

    /// The first address that a block serves, and what it serves there.
    pub fn of_block(&self, block: BlockId) -> Option<(u64, Extent)> {
        let rank = rank(block);
        let &(_, address) = self.by_block.range((rank, 0)..=(rank, u64::MAX)).next()?;
        Some((address, self.by_address[&address]))
    }

    /// The next block to bring in that `free` allows.
    pub fn next_block(&self, free: impl Fn(BlockId) -> bool) -> Option<BlockId> {
        let mut ranks = self.by_block.iter().map(|(rank, _)| BlockId { frame: rank.0, block: rank.1 .0 });
        let mut last = None;
        ranks.find(|&block| last.replace(block) != Some(block) && free(block))
    }

    /// Removes all between two addresses and returns it.
    fn cut_out(&mut self, start: u64, end: u64) -> Vec<(u64, Extent)> {
        let from = self.by_address.range(..=start).next_back().map_or(start, |(&address, _)| address);
        let touched: Vec<u64> = self.by_address.range(from..end.max(from)).map(|(&address, _)| address).collect();
        let mut out = Vec::new();
        for address in touched {
            let Some(extent) = self.take(address) else { continue };
            let (first, last) = (start.clamp(address, address + extent.len), end.clamp(address, address + extent.len));
            for (from, to, inside) in [(address, first, false), (first, last, true), (last, address + extent.len, false)] {
                let part = Extent { len: to - from, ..behind(extent, from - address) };
                match inside {
                    _ if from == to => {}
                    true => out.push((from, part)),
                    false => self.insert(from, part),
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
        for (address, extent) in moved {
            self.insert(address - from + to, extent);
        }
    }
}

/// An extent without its first `skip` bytes; a block is much shorter than 4 GiB.
fn behind(extent: Extent, skip: u64) -> Extent {
    Extent { len: extent.len - skip, at: extent.at + skip as u32, ..extent }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = 4096;

    fn block(frame: u32, block: u32) -> BlockId {
        BlockId { frame, block }
    }

    /// Page n of `pages` comes to page `first + n`, all from one block.
    fn pending(parts: &[(u64, u64, BlockId)]) -> Pending {
        let mut pending = Pending::default();
        for &(first, pages, block) in parts {
            pending.add(&Piece { object: 1, offset: first * P, len: pages * P, source: Source::Data { block, at: 0 } });
        }
        pending
    }

    fn at(pending: &Pending, page: u64) -> Option<u64> {
        pending.at(page * P).map(|extent| u64::from(extent.at) / P)
    }

    #[test]
    fn what_is_dropped_in_the_middle_leaves_both_ends() {
        let mut pages = pending(&[(10, 10, block(0, 1))]);
        pages.forget(13 * P, 15 * P);
        assert_eq!([12, 13, 14, 15, 19, 20].map(|page| at(&pages, page)), [Some(2), None, None, Some(5), Some(9), None]);
        assert_eq!(pages.bytes(), 8 * P);
        pages.forget(0, u64::MAX);
        assert!(pages.is_empty() && pages.of_block(block(0, 1)).is_none());
    }

    #[test]
    fn what_moves_is_found_at_its_new_place_only() {
        let mut pages = pending(&[(10, 10, block(0, 1)), (100, 4, block(0, 2))]);
        pages.relocate(12 * P, 102 * P, 3 * P);
        assert_eq!([11, 12, 14, 15].map(|page| at(&pages, page)), [Some(1), None, None, Some(5)]);
        assert_eq!([101, 102, 104, 105].map(|page| at(&pages, page)), [Some(1), Some(2), Some(4), None]);
        assert_eq!(pages.at(103 * P).unwrap().block, block(0, 1));
    }

    #[test]
    fn a_move_onto_its_own_tail_keeps_what_moved() {
        let mut pages = pending(&[(10, 4, block(0, 1))]);
        pages.relocate(10 * P, 12 * P, 2 * P);
        assert_eq!([10, 11, 12, 13].map(|page| at(&pages, page)), [None, None, Some(0), Some(1)]);
    }

    #[test]
    fn the_newest_comes_first() {
        let mut pages = pending(&[(1, 1, block(1, 9)), (2, 1, block(0, 3)), (3, 1, block(0, 4))]);
        let mut order = Vec::new();
        while let Some(next) = pages.next_block(|_| true) {
            order.push((next.frame, next.block));
            let (address, extent) = pages.of_block(next).unwrap();
            pages.forget(address, address + extent.len);
        }
        assert_eq!(order, [(0, 4), (0, 3), (1, 9)]);
        assert_eq!(pending(&[(1, 1, block(0, 1)), (5, 1, block(0, 1)), (9, 1, block(0, 0))]).next_block(|b| b != block(0, 1)), Some(block(0, 0)));
    }
}
