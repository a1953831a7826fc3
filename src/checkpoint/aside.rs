//! Pages copied into our own memory, because there is no time to write them: the last rounds, and the pause.

use crate::error::Result;
use crate::sys::PAGE;
use crate::track::{Range, Ranges};
use crate::tracee::memory::Memory;
use crate::transfer::Feed;

/// Copies of pages on their way into the frame.
#[derive(Debug, Default)]
pub struct Aside {
    bytes: Vec<u8>,
    used: usize,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    object: u32,
    range: Range,
    at: usize,
    generation: u32,
}

impl Aside {
    /// Makes room for that many more bytes now, so that the pause need not wait for the kernel to find memory.
    pub fn reserve(&mut self, bytes: u64) {
        let wanted = self.used + bytes as usize;
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
    }

    /// Bytes held.
    pub fn held(&self) -> u64 {
        self.used as u64
    }

    /// Copies pages of a stopped process.
    pub fn copy(&mut self, object: u32, memory: &Memory, ranges: &Ranges, generation: u32) -> Result<()> {
        let wanted: Vec<(u64, usize)> = ranges.as_slice().iter().map(|range| (range.0, (range.1 - range.0) as usize)).collect();
        self.reserve(ranges.bytes());
        let end = self.used + ranges.bytes() as usize;
        memory.gather(&wanted, &mut self.bytes[self.used..end])?;
        for &range in ranges.as_slice() {
            self.add(object, range, generation);
        }
        Ok(())
    }

    /// Copies pages of a process that runs; returns those that could not be read, because they were just unmapped or are closed to readers.
    pub fn copy_of_running(&mut self, object: u32, memory: &Memory, ranges: &Ranges, generation: u32) -> Ranges {
        // As a rule all can be read at once.
        let before = (self.used, self.pieces.len());
        if self.copy(object, memory, ranges, generation).is_ok() {
            return Ranges::default();
        }
        self.used = before.0;
        self.pieces.truncate(before.1);
        let mut missing = Ranges::default();
        for &(start, end) in ranges.as_slice() {
            for at in (start..end).step_by(PAGE as usize) {
                let page = (at, at + PAGE);
                self.reserve(PAGE);
                match memory.read(at, &mut self.bytes[self.used..self.used + PAGE as usize]) {
                    Ok(()) => self.add(object, page, generation),
                    Err(_) => missing.push(page),
                }
            }
        }
        missing
    }

    /// Makes room for `ranges` of an object, one behind the other, for the caller to fill.
    pub fn place(&mut self, object: u32, ranges: &Ranges, generation: u32) -> &mut [u8] {
        self.reserve(ranges.bytes());
        let from = self.used;
        ranges.as_slice().iter().for_each(|&range| self.add(object, range, generation));
        &mut self.bytes[from..self.used]
    }

    fn add(&mut self, object: u32, range: Range, generation: u32) {
        let at = self.used;
        self.used += (range.1 - range.0) as usize;
        self.pieces.push(Piece { object, range, at, generation });
    }

    /// Sends all of it into the frame.
    pub fn feed(&self, feed: &mut Feed<'_>) -> Result<()> {
        for Piece { object, range, at, generation } in &self.pieces {
            feed.bytes(*object, range.0, &self.bytes[*at..*at + (range.1 - range.0) as usize], *generation)?;
        }
        Ok(())
    }
}
