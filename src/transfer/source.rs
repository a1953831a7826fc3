//! Reading ranges of a process's memory, block by block, past pages that are not there.

use super::block::{Block, Piece};
use crate::error::Result;
use crate::proc::{maps, path};
use crate::sys::{process_vm, PAGE};
use crate::tracee::memory::Memory;

/// After so many absent pages in a row the list of mappings is asked how far that goes.
const ABSENT: u32 = 32;

/// Ranges up to this length are read many at a time, where that does no harm.
const SHORT: u64 = 16 * PAGE;

/// Is told of stretches (start, end) that are not there.
pub type Missing<'a> = dyn FnMut(u64, u64) -> Result<()> + 'a;

/// Ranges [start, end), and how far they are read.
pub struct Cursor<'a> {
    ranges: &'a [(u64, u64)],
    /// The next address of the first range.
    at: u64,
    /// Absent pages in a row.
    absent: u32,
    /// The process has written to all of them lately: none is shared with a fork, and reading many at a time copies no page there.
    written: bool,
}

impl<'a> Cursor<'a> {
    pub fn new(ranges: &'a [(u64, u64)], written: bool) -> Self {
        let mut cursor = Cursor { ranges, at: ranges.first().map_or(0, |range| range.0), absent: 0, written };
        cursor.advance_to(cursor.at);
        cursor
    }

    pub fn is_done(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Reads until the block is full or all is read; pages that are not there go to `missing`.
    pub fn fill(&mut self, memory: &Memory, block: &mut Block, (object, generation): (u32, u32), missing: &mut Missing<'_>) -> Result<()> {
        while let (Some(&(_, end)), false) = (self.ranges.first(), block.is_full()) {
            if self.written && self.gather(memory, block, object, generation) {
                continue;
            }
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

    /// Reads the next short ranges at once, as many as there is room for, up to one that cannot be read; whether there was any.
    fn gather(&mut self, memory: &Memory, block: &mut Block, object: u32, generation: u32) -> bool {
        let (mut left, mut wanted) = (block.room().len() as u64, Vec::new());
        for &(start, end) in self.ranges.iter().take(process_vm::MAX_RANGES) {
            let len = end - start;
            if len > SHORT.min(left) || (wanted.is_empty() && self.at != start) {
                break;
            }
            wanted.push((start, len as usize));
            left -= len;
        }
        if wanted.len() < 2 {
            return false;
        }
        let total: usize = wanted.iter().map(|range| range.1).sum();
        let mut read = memory.read_whole(&wanted, &mut block.room()[..total]) as u64;
        let any = read > 0;
        while let (Some(&(offset, end)), 1..) = (self.ranges.first(), read) {
            block.filled(Piece { object, offset, len: end - offset, generation });
            read -= end - offset;
            self.absent = 0;
            self.advance_to(end);
        }
        any
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
