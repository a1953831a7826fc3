//! Reading ranges of a process's memory, block by block, past pages that are not there.

use super::block::{Block, Piece};
use crate::error::Result;
use crate::proc::{maps, path};
use crate::sys::PAGE;
use crate::tracee::memory::Memory;

/// After so many absent pages in a row the list of mappings is asked how far that goes.
const ABSENT: u32 = 32;

/// Is told of stretches (start, end) that are not there.
pub type Missing<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// Ranges [start, end), and how far they are read.
pub struct Cursor<'a> {
    ranges: &'a [(u64, u64)],
    /// The next address of the first range.
    at: u64,
    /// Absent pages in a row.
    absent: u32,
}

impl<'a> Cursor<'a> {
    pub fn new(ranges: &'a [(u64, u64)]) -> Self {
        let mut cursor = Cursor { ranges, at: ranges.first().map_or(0, |range| range.0), absent: 0 };
        cursor.advance_to(cursor.at);
        cursor
    }

    pub fn is_done(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Reads until the block is full or all is read; pages that are not there go to `missing`.
    pub fn fill(&mut self, memory: &Memory, block: &mut Block, (object, generation): (u32, u32), missing: &mut Missing<'_>) -> Result<()> {
        while let (Some(&(_, end)), false) = (self.ranges.first(), block.is_full()) {
            let room = block.room();
            let len = (end - self.at).min(room.len() as u64);
            let got = memory.read_some(self.at, &mut room[..len as usize])? as u64;
            if got > 0 {
                block.filled(Piece { object, offset: self.at, len: got, generation });
                self.absent = 0;
                self.advance_to(self.at + got);
            } else {
                let next = self.present(memory, end)?;
                missing(self.at, next)?;
                self.advance_to(next);
            }
        }
        Ok(())
    }

    /// Where reading is worth a try again: at the next page, or where the next mapping starts.
    fn present(&mut self, memory: &Memory, end: u64) -> Result<u64> {
        let next = (self.at - self.at % PAGE + PAGE).min(end);
        self.absent += 1;
        if self.absent % ABSENT > 0 {
            return Ok(next);
        }
        let vmas = maps::read(&path(memory.pid(), "maps"))?;
        let mapped = vmas.iter().find(|vma| vma.end > self.at).map_or(end, |vma| vma.start);
        Ok(next.max(mapped.min(end)))
    }

    /// Goes on at `address`, or where the next range starts.
    fn advance_to(&mut self, address: u64) {
        self.at = address;
        while let Some((_, rest)) = self.ranges.split_first().filter(|(first, _)| self.at >= first.1) {
            self.ranges = rest;
            self.at = rest.first().map_or(0, |range| range.0);
        }
    }
}
