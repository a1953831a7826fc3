//! A frame and all that it builds upon, written anew as one full frame: what nothing refers to any more is left out.
//!
//! Several threads read, pack and encode, each block once; the caller's writes. No more than a few blocks are in memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{sync_channel, SyncSender};
use std::thread;

use super::chain::{Chain, Piece, Source};
use super::block::Block;
use super::codec::{encode, Compression, EncodedBlock, BLOCK_MAX};
use super::writer::{FrameWriter, RunInBlock};
use crate::error::{Error, Kind, Result};

/// A block that can be written, and what it holds.
type Ready = (EncodedBlock, Vec<RunInBlock>);

impl Chain {
    /// Whether [`Chain::rewrite`] would change nothing: the frame builds upon none, and every byte in it is of use.
    pub fn is_compact(&self) -> bool {
        let data = self.data_by_block();
        let raw_len = |block: u32| u64::from(self.newest().blocks()[block as usize].raw_len);
        let whole = |pieces: &[Piece]| block_of(&pieces[0]).is_some_and(|block| covered(pieces) == raw_len(block.block));
        let blocks: Vec<&[Piece]> = data.chunk_by(|a, b| block_of(a) == block_of(b)).collect();
        self.header().parent.is_none() && blocks.len() == self.newest().blocks().len() && blocks.into_iter().all(whole)
    }

    /// Writes all that the newest frame holds; blocks of which every byte is of use are copied as they are. `progress` is told
    /// how many pieces of how many are done.
    pub fn rewrite(&self, writer: &mut FrameWriter, compression: Compression, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        for piece in self.pieces().iter().filter(|piece| piece.source == Source::Zero) {
            writer.zero(piece.object, piece.offset, piece.len, 0)?;
        }
        let data = self.data_by_block();
        let blocks: Vec<&[Piece]> = data.chunk_by(|a, b| block_of(a) == block_of(b)).collect();
        let next = AtomicUsize::new(0);
        let workers = thread::available_parallelism().map_or(2, usize::from).clamp(1, 8);
        let (total, mut done) = (data.len() as u64, 0);
        thread::scope(|scope| {
            let (ready, results) = sync_channel::<Result<Ready>>(workers);
            let handles: Vec<_> = (0..workers).map(|_| ready.clone()).map(|ready| scope.spawn(|| self.pack(&blocks, &next, compression, ready))).collect();
            drop(ready);
            let written = results.iter().try_for_each(|ready| {
                let (block, runs) = ready?;
                done += runs.len() as u64;
                progress(done, total);
                writer.append(&block, &runs)
            });
            // Without a reader of the results, workers that wait to hand one over go home.
            drop(results);
            let joined = handles.into_iter().try_for_each(|handle| handle.join().map_err(|_| Error::new(Kind::Io, "a packing thread failed")));
            written.and(joined)
        })
    }

    /// All pieces that lie in blocks, sorted by their place in the chain.
    fn data_by_block(&self) -> Vec<Piece> {
        let mut data: Vec<Piece> = self.pieces().iter().filter(|piece| piece.source != Source::Zero).copied().collect();
        data.sort_unstable_by_key(|piece| (block_of(piece), at(piece)));
        data
    }

    fn pack(&self, blocks: &[&[Piece]], next: &AtomicUsize, compression: Compression, out: SyncSender<Result<Ready>>) {
        let mut packer = Packer { out, compression, raw: Vec::with_capacity(BLOCK_MAX), runs: Vec::new() };
        let mut buffer = Block::default();
        while let Some(pieces) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let repacked = self.repack(pieces, &mut buffer, &mut packer);
            if !packer.pass(repacked) {
                return;
            }
        }
        let last = packer.flush();
        packer.pass(last);
    }

    /// Takes what is of use out of one block.
    fn repack(&self, pieces: &[Piece], buffer: &mut Block, packer: &mut Packer) -> Result<()> {
        let Some(block) = block_of(&pieces[0]) else { return Ok(()) };
        let frame = &self.frames()[block.frame as usize];
        if covered(pieces) == u64::from(frame.blocks()[block.block as usize].raw_len) {
            let runs = pieces.iter().map(|piece| run(piece, at(piece))).collect();
            return packer.send(frame.stored_block(block.block)?, runs);
        }
        self.read_block(block, buffer)?;
        packer.add(pieces, buffer.raw())
    }
}

fn block_of(piece: &Piece) -> Option<super::BlockId> {
    match piece.source {
        Source::Data { block, .. } => Some(block),
        Source::Zero => None,
    }
}

fn at(piece: &Piece) -> u32 {
    match piece.source {
        Source::Data { at, .. } => at,
        Source::Zero => 0,
    }
}

/// Both lie inside one block, so that they fit.
fn end(piece: &Piece) -> u32 {
    at(piece) + piece.len as u32
}

fn run(piece: &Piece, at: u32) -> RunInBlock {
    RunInBlock { object: piece.object, offset: piece.offset, at, len: piece.len as u32, generation: 0 }
}

/// How many bytes of a block its pieces cover; objects may share some.
fn covered(pieces: &[Piece]) -> u64 {
    let mut reached = 0;
    let fresh = |piece: &Piece| {
        let fresh = end(piece).saturating_sub(at(piece).max(reached));
        reached = reached.max(end(piece));
        u64::from(fresh)
    };
    pieces.iter().map(fresh).sum()
}

/// Gathers what is left of blocks into new ones.
struct Packer {
    out: SyncSender<Result<Ready>>,
    compression: Compression,
    raw: Vec<u8>,
    runs: Vec<RunInBlock>,
}

impl Packer {
    /// Adds the pieces of one block, whose content is `raw`, and which are sorted by their place in it.
    fn add(&mut self, pieces: &[Piece], raw: &[u8]) -> Result<()> {
        if self.raw.len() + covered(pieces) as usize > BLOCK_MAX {
            self.flush()?;
        }
        let mut reached = 0;
        for piece in pieces {
            let (start, end) = (at(piece).max(reached), end(piece));
            if start < end {
                self.raw.extend_from_slice(&raw[start as usize..end as usize]);
                reached = end;
            }
            // What the piece shares with those before it lies right before the end, too: the stretch has no gap.
            let behind = reached - at(piece);
            self.runs.push(run(piece, self.raw.len() as u32 - behind));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let block = encode(&self.raw, self.compression)?;
        self.raw.clear();
        let runs = std::mem::take(&mut self.runs);
        self.send(block, runs)
    }

    fn send(&self, block: EncodedBlock, runs: Vec<RunInBlock>) -> Result<()> {
        self.out.send(Ok((block, runs))).map_err(|_| Error::new(Kind::Io, "the rewriting was given up"))
    }

    /// Hands an error to the writer; false if there was one.
    fn pass(&self, step: Result<()>) -> bool {
        let failed = step.is_err();
        if let Err(e) = step {
            // The writer is gone if it failed itself, and then says why.
            let _ = self.out.send(Err(e));
        }
        !failed
    }
}
