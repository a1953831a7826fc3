//! The entrance of the line, on the caller's thread.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::block::{Block, Piece};
use super::line::Line;
use super::source::{Cursor, Missing};
use crate::error::{Context, Result};
use crate::resource::contents::{data_ranges, Content};
use crate::tracee::memory::Memory;

/// How long a feeder that waits for room goes without a look at what else happened.
const TICK: Duration = Duration::from_millis(50);

/// Takes what is to go into the frame, in any order: where two feeds cover the same bytes of an object, the later generation
/// counts. Two feeds of one generation must not overlap.
pub struct Feed<'a> {
    line: &'a Line,
    blocks: usize,
    /// Blocks nobody uses.
    home: Vec<Block>,
    current: Option<Block>,
    fed: Sender<Block>,
    free: Receiver<Block>,
    reading: Duration,
}

impl<'a> Feed<'a> {
    pub(super) fn new(line: &'a Line, blocks: usize, fed: Sender<Block>, free: Receiver<Block>) -> Self {
        let home = (0..blocks).map(|_| Block::default()).collect();
        Feed { line, blocks, home, current: None, fed, free, reading: Duration::ZERO }
    }

    /// Copies ranges [start, end) of a process's memory, in whole pages; the offset in the object is the address.
    pub fn memory(&mut self, object: u32, memory: &Memory, ranges: &[(u64, u64)], generation: u32) -> Result<()> {
        self.copy(object, memory, ranges, generation, &mut |_, _, error| Err(error))
    }

    /// The same for a process that runs and may unmap: returns the ranges that could not be read, sorted as they came.
    pub fn memory_of_running(&mut self, object: u32, memory: &Memory, ranges: &[(u64, u64)], generation: u32) -> Result<Vec<(u64, u64)>> {
        let mut missing: Vec<(u64, u64)> = Vec::new();
        self.copy(object, memory, ranges, generation, &mut |start, end, _| {
            match missing.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => missing.push((start, end)),
            }
            Ok(())
        })?;
        Ok(missing)
    }

    /// Copies the data of a saved file; its generation is 0.
    pub fn content(&mut self, content: &Content) -> Result<()> {
        for (start, len) in data_ranges(&content.file, content.len).context("cannot find the data of a saved file")? {
            let (mut at, end) = (start, start + len);
            while at < end {
                let mut block = self.open()?;
                let begun = Instant::now();
                let room = block.room();
                let len = (end - at).min(room.len() as u64);
                content.file.read_exact_at(&mut room[..len as usize], at).context("cannot read the copy of a saved file")?;
                block.filled(Piece { object: content.object, offset: content.base + at, len, generation: 0 });
                self.reading += begun.elapsed();
                self.close(block)?;
                at += len;
            }
        }
        Ok(())
    }

    /// Takes bytes that the caller copied already.
    pub fn bytes(&mut self, object: u32, mut offset: u64, mut bytes: &[u8], generation: u32) -> Result<()> {
        while !bytes.is_empty() {
            let mut block = self.open()?;
            let room = block.room();
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            block.filled(Piece { object, offset, len: now.len() as u64, generation });
            self.close(block)?;
            offset += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Sends off what is fed so far, even where it does not fill a block.
    pub fn flush(&mut self) -> Result<()> {
        match self.current.take() {
            Some(block) => self.send(block),
            None => Ok(()),
        }
    }

    /// Waits until all that is fed so far is encoded and written to the file (not synced).
    pub fn settle(&mut self) -> Result<()> {
        self.flush()?;
        while self.home.len() < self.blocks {
            let block = self.wait()?;
            self.home.push(block);
        }
        Ok(())
    }

    /// Length of the frame so far.
    pub fn written(&self) -> u64 {
        self.line.written()
    }

    /// Nothing more comes; how long reading took.
    pub(super) fn end(self) -> Duration {
        self.reading
    }

    fn copy(&mut self, object: u32, memory: &Memory, ranges: &[(u64, u64)], generation: u32, missing: &mut Missing<'_>) -> Result<()> {
        let mut cursor = Cursor::new(ranges);
        while !cursor.is_done() {
            let mut block = self.open()?;
            let begun = Instant::now();
            cursor.fill(memory, &mut block, (object, generation), missing)?;
            self.reading += begun.elapsed();
            self.close(block)?;
        }
        Ok(())
    }

    /// A block with room.
    fn open(&mut self) -> Result<Block> {
        match self.current.take().or_else(|| self.home.pop()) {
            Some(_) if self.line.is_over() => Err(self.line.echo()),
            Some(block) => Ok(block),
            None => self.wait(),
        }
    }

    /// Puts the block away if it has room left, else sends it on.
    fn close(&mut self, block: Block) -> Result<()> {
        if block.is_full() {
            return self.send(block);
        }
        self.current = Some(block);
        Ok(())
    }

    fn send(&mut self, block: Block) -> Result<()> {
        if block.is_empty() {
            self.home.push(block);
            return Ok(());
        }
        self.fed.send(block).map_err(|_| self.line.echo())
    }

    /// The next block that comes back.
    fn wait(&mut self) -> Result<Block> {
        loop {
            if self.line.is_over() {
                return Err(self.line.echo());
            }
            match self.free.recv_timeout(TICK) {
                Ok(block) => return Ok(block),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.line.echo()),
            }
        }
    }
}
