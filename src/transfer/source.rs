//! Reading ranges of a process's memory, piece by piece, past pages that are not there.

use super::block::{Block, Piece};
use crate::error::{Error, Result};
use crate::proc::{maps, path};
use crate::sys::process_vm::MAX_RANGES;
use crate::sys::PAGE;
use crate::tracee::memory::Memory;

/// After so many absent pages in a row the list of mappings is asked how far that goes.
const ABSENT: u32 = 32;

/// Is told of stretches (start, end) that are not there, and why.
pub type Missing<'a> = dyn FnMut(u64, u64, Error) -> Result<()> + 'a;

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
        cursor.skip_empty();
        cursor
    }

    pub fn is_done(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Reads until the block is full or a page is met that is not there, which goes to `missing`.
    pub fn fill(&mut self, memory: &Memory, block: &mut Block, (object, generation): (u32, u32), missing: &mut Missing<'_>) -> Result<()> {
        let piece = |offset, len| Piece { object, offset, len, generation };
        let mut batch = [(0, 0); MAX_RANGES];
        let room = block.room();
        let (count, wanted) = self.peek(room.len(), &mut batch);
        let got = memory.read_some(&batch[..count], room)?;
        self.advance(got as u64, &mut |start, len| block.filled(piece(start, len)));
        if got == wanted {
            self.absent = 0;
            return Ok(());
        }
        // Memory that its owner may not read is read another way, until that fails too.
        let len = (self.ranges[0].1 - self.at).min(block.room().len() as u64);
        match memory.force_some(self.at, &mut block.room()[..len as usize]) {
            Ok(forced) => {
                self.absent = 0;
                self.advance(forced as u64, &mut |start, len| block.filled(piece(start, len)));
                Ok(())
            }
            Err(error) => self.skip(memory, error, missing),
        }
    }

    /// Ranges for one call, of `room` bytes at most: how many, and their sum.
    fn peek(&self, room: usize, batch: &mut [(u64, usize); MAX_RANGES]) -> (usize, usize) {
        let (mut count, mut sum) = (0, 0);
        for (number, &(start, end)) in self.ranges.iter().take(MAX_RANGES).enumerate() {
            let start = if number == 0 { self.at } else { start };
            let len = end.saturating_sub(start).min((room - sum) as u64) as usize;
            batch[number] = (start, len);
            (count, sum) = (number + 1, sum + len);
            if sum == room {
                break;
            }
        }
        (count, sum)
    }

    /// Passes over `len` bytes, and says in which stretches they lie.
    fn advance(&mut self, mut len: u64, each: &mut dyn FnMut(u64, u64)) {
        while len > 0 && !self.is_done() {
            let part = len.min(self.ranges[0].1 - self.at);
            each(self.at, part);
            self.at += part;
            len -= part;
            self.skip_empty();
        }
    }

    fn skip_empty(&mut self) {
        while let Some((_, rest)) = self.ranges.split_first().filter(|(first, _)| self.at >= first.1) {
            self.ranges = rest;
            self.at = rest.first().map_or(0, |range| range.0);
        }
    }

    /// Passes over what is not there: a page, or all up to the next mapping.
    fn skip(&mut self, memory: &Memory, error: Error, missing: &mut Missing<'_>) -> Result<()> {
        let (start, end) = (self.at, self.ranges[0].1);
        let mut next = (start - start % PAGE + PAGE).min(end);
        self.absent += 1;
        if self.absent % ABSENT == 0 {
            let vmas = maps::read(&path(memory.pid(), "maps"))?;
            let mapped = vmas.iter().find(|vma| vma.end > start).map_or(end, |vma| vma.start);
            next = next.max(mapped.min(end));
        }
        missing(start, next, error)?;
        self.advance(next - start, &mut |_, _| {});
        Ok(())
    }
}
