//! Pages copied into our own memory, because there is no time to write them: the last rounds, and the pause.

use crate::error::{Error, Result};
use crate::sys::memory::{Owned, HUGE};
use crate::sys::PAGE;
use crate::track::{Range, Ranges};
use crate::tracee::memory::Memory;
use crate::transfer::Feed;

/// Copies of pages on their way into the frame.
#[derive(Debug, Default)]
pub struct Aside {
    chunks: Vec<Chunk>,
    pieces: Vec<Piece>,
}

/// Memory that stays where it is, filled from the front.
#[derive(Debug)]
struct Chunk {
    bytes: Owned,
    used: usize,
}

#[derive(Debug)]
struct Piece {
    object: u32,
    range: Range,
    chunk: usize,
    at: usize,
    generation: u32,
}

/// At least that many bytes, which the kernel has found memory for: it does so at the first touch of each page.
pub fn room(bytes: u64) -> Result<Owned> {
    let bytes = bytes.next_multiple_of(HUGE);
    let failed = |e| Error::io(format!("cannot find {} MiB of memory for pages; lower --memory-limit or free some memory", bytes >> 20), e);
    let mut room = Owned::new(bytes).map_err(failed)?;
    room.iter_mut().step_by(PAGE as usize).for_each(|byte| *byte = 0);
    Ok(room)
}

impl Aside {
    /// Makes room for that many more bytes now, so that the pause need not wait for the kernel to find memory.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        let left: usize = self.chunks.last().map_or(0, |chunk| chunk.bytes.len() - chunk.used);
        if left as u64 >= bytes {
            return Ok(());
        }
        self.add(room(bytes)?);
        Ok(())
    }

    /// Takes memory that will be filled next.
    pub fn add(&mut self, bytes: Owned) {
        self.chunks.push(Chunk { bytes, used: 0 });
    }

    /// Bytes held.
    pub fn held(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.used as u64).sum()
    }

    /// Copies pages of a process; returns those that could not be read, because they were just unmapped or are closed to readers.
    pub fn copy(&mut self, object: u32, memory: &Memory, ranges: &Ranges, generation: u32) -> Result<Ranges> {
        // As a rule all can be read at once.
        if self.copy_all(object, memory, ranges, generation)? {
            return Ok(Ranges::default());
        }
        let mut missing = Ranges::default();
        for &(start, end) in ranges.as_slice() {
            for at in (start..end).step_by(PAGE as usize) {
                let page = Ranges::of(vec![(at, at + PAGE)]);
                if !self.copy_all(object, memory, &page, generation)? {
                    missing.push((at, at + PAGE));
                }
            }
        }
        Ok(missing)
    }

    /// Copies all or nothing: whether it did.
    fn copy_all(&mut self, object: u32, memory: &Memory, ranges: &Ranges, generation: u32) -> Result<bool> {
        let wanted: Vec<(u64, usize)> = ranges.as_slice().iter().map(|range| (range.0, (range.1 - range.0) as usize)).collect();
        self.fill(object, ranges, generation, |bytes| memory.gather(&wanted, bytes)).map(|filled| filled.is_ok())
    }

    /// Takes the bytes of `ranges` of an object, one behind the other, from whoever can fill them in.
    pub fn place(&mut self, object: u32, ranges: &Ranges, generation: u32, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        self.fill(object, ranges, generation, fill)?
    }

    /// The outer error is ours, the inner one that of `fill`.
    fn fill(&mut self, object: u32, ranges: &Ranges, generation: u32, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Result<()>> {
        self.reserve(ranges.bytes())?;
        let number = self.chunks.len().saturating_sub(1);
        let Some(chunk) = self.chunks.last_mut() else { return Ok(Ok(())) };
        let end = chunk.used + ranges.bytes() as usize;
        if let Err(e) = fill(&mut chunk.bytes[chunk.used..end]) {
            return Ok(Err(e));
        }
        for &range in ranges.as_slice() {
            self.pieces.push(Piece { object, range, chunk: number, at: chunk.used, generation });
            chunk.used += (range.1 - range.0) as usize;
        }
        Ok(Ok(()))
    }

    /// Sends all of it into the frame.
    pub fn feed(&self, feed: &mut Feed<'_>) -> Result<()> {
        for Piece { object, range, chunk, at, generation } in &self.pieces {
            feed.bytes(*object, range.0, &self.chunks[*chunk].bytes[*at..*at + (range.1 - range.0) as usize], *generation)?;
        }
        Ok(())
    }
}
