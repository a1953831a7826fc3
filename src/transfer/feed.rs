//! The entrance of the line, on the caller's thread.

use std::os::unix::fs::FileExt;
use std::time::Instant;

use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};

use super::block::{Block, Piece};
use super::line::{Line, Parcel, TICK};
use super::progress::Status;
use super::source::{Cursor, Missing};
use super::How;
use crate::error::{Context, Error, Kind, Result};
use crate::resource::contents::{data_ranges, Content};
use crate::tracee::memory::Memory;

/// Takes what is to go into the frame, in any order: where two feeds cover the same bytes of an object, the later generation
/// counts. Two feeds of one generation must not overlap.
pub struct Feed<'a> {
    line: &'a Line,
    how: &'a How,
    status: Status,
    told: Instant,
    /// Blocks there may be, and how large each is.
    most: usize,
    block_size: usize,
    /// Blocks there are.
    made: usize,
    /// Blocks nobody uses.
    home: Vec<Block>,
    current: Option<Block>,
    fed: Sender<Block>,
    encoded: Sender<Parcel>,
    free: Receiver<Block>,
}

impl<'a> Feed<'a> {
    pub(super) fn new(line: &'a Line, how: &'a How, (most, block_size): (usize, usize), (fed, encoded, free): (Sender<Block>, Sender<Parcel>, Receiver<Block>)) -> Self {
        let status = Status { written: line.written(), ..Status::default() };
        Feed { line, how, status, told: Instant::now(), most, block_size, made: 0, home: Vec::new(), current: None, fed, encoded, free }
    }

    /// Says for whoever watches the progress that `round` begins, counted from 0, in which about `bytes` will be fed.
    pub fn announce(&mut self, round: u32, bytes: u64) -> Result<()> {
        self.status.round = round;
        self.status.expected += bytes;
        self.tell()
    }

    /// Copies ranges [start, end) of a process's memory, in whole pages; the offset in the object is the address.
    pub fn memory(&mut self, object: u32, memory: &Memory, ranges: &[(u64, u64)], generation: u32) -> Result<()> {
        self.copy(object, memory, Cursor::new(ranges, false), generation, &mut |start, _| Err(memory.absent(start)))
    }

    /// The same for a process that runs and may unmap: returns the ranges that could not be read, sorted as they came. With `written`
    /// it has written to all of them lately, which makes many short ones quicker to read.
    pub fn memory_of_running(&mut self, object: u32, memory: &Memory, ranges: &[(u64, u64)], generation: u32, written: bool) -> Result<Vec<(u64, u64)>> {
        let mut missing: Vec<(u64, u64)> = Vec::new();
        self.copy(object, memory, Cursor::new(ranges, written), generation, &mut |start, end| {
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
        let data = data_ranges(&content.file, content.len).context("cannot find the data of a saved file")?;
        let ranges: Vec<(u64, u64)> = data.into_iter().map(|(start, len)| (content.base + start, content.base + start + len)).collect();
        self.ranges(content.object, &ranges, 0, |offset, bytes| content.file.read_exact_at(bytes, offset - content.base).context("cannot read the copy of a saved file"))
    }

    /// Takes ranges [start, end) of an object, in whole pages but for the last, from whoever fills in the bytes at an offset.
    pub fn ranges(&mut self, object: u32, ranges: &[(u64, u64)], generation: u32, mut fill: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
        for &(mut at, end) in ranges {
            while at < end {
                let mut block = self.open()?;
                let begun = Instant::now();
                let room = block.room();
                let len = (end - at).min(room.len() as u64);
                let read = fill(at, &mut room[..len as usize]);
                if read.is_ok() {
                    block.filled(Piece { object, offset: at, len, generation });
                }
                block.reading += begun.elapsed();
                self.close(block)?;
                read?;
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

    /// Waits until all that is fed so far is encoded and in the file, but for less than what one write takes (not synced).
    pub fn settle(&mut self) -> Result<()> {
        self.flush()?;
        while self.home.len() < self.made {
            let block = self.wait(|feed| feed.free.recv_timeout(TICK))?;
            self.home.push(block);
        }
        let (done, drained) = bounded(1);
        self.encoded.send(Parcel::Drain(done)).map_err(|_| self.line.echo())?;
        self.wait(|_| drained.recv_timeout(TICK))?;
        self.tell()
    }

    /// Length of the frame so far.
    pub fn written(&self) -> u64 {
        self.line.written()
    }

    fn copy(&mut self, object: u32, memory: &Memory, mut cursor: Cursor<'_>, generation: u32, missing: &mut Missing<'_>) -> Result<()> {
        while !cursor.is_done() {
            let mut block = self.open()?;
            let begun = Instant::now();
            let filled = cursor.fill(memory, &mut block, (object, generation), missing);
            block.reading += begun.elapsed();
            // Whoever gets over a failure must not lose what was fed before it.
            self.close(block)?;
            filled?;
        }
        Ok(())
    }

    /// A block with room.
    fn open(&mut self) -> Result<Block> {
        match self.current.take().or_else(|| self.free.try_recv().ok()).or_else(|| self.home.pop()) {
            Some(_) if self.line.is_over() => Err(self.line.echo()),
            Some(block) => Ok(block),
            None if self.made < self.most => {
                self.made += 1;
                Block::new(self.block_size)
            }
            None => self.wait(|feed| feed.free.recv_timeout(TICK)),
        }
    }

    /// Puts the block away if it has room left, else sends it on.
    fn close(&mut self, block: Block) -> Result<()> {
        if !block.is_full() {
            self.current = Some(block);
            return Ok(());
        }
        self.send(block)?;
        if self.told.elapsed() >= TICK {
            self.tell()?;
        }
        Ok(())
    }

    fn send(&mut self, block: Block) -> Result<()> {
        if block.len() == 0 {
            self.home.push(block);
            return Ok(());
        }
        self.status.fed += block.len() as u64;
        self.fed.send(block).map_err(|_| self.line.echo())
    }

    /// Waits for what another thread sends.
    fn wait<T>(&mut self, receive: impl Fn(&Self) -> std::result::Result<T, RecvTimeoutError>) -> Result<T> {
        loop {
            if self.line.is_over() {
                return Err(self.line.echo());
            }
            match receive(self) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Timeout) => self.tell()?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.line.echo()),
            }
        }
    }

    /// Tells how far we are, and ends all if that is no longer wanted.
    fn tell(&mut self) -> Result<()> {
        let Some(progress) = &self.how.progress else { return Ok(()) };
        self.status.written = self.line.written();
        self.told = Instant::now();
        if progress.tell(&self.status) {
            return Ok(());
        }
        self.line.fail(Error::new(Kind::Cancelled, "the frame was cancelled while it was written"));
        Err(self.line.echo())
    }
}
