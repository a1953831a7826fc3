//! A block on its way: filled by the feed, emptied of zero pages and encoded by a worker, written, and filled again.

use crate::error::Result;
use crate::image::{encode, Compression, EncodedBlock, RunInBlock, BLOCK_MAX};
use crate::sys::PAGE;

/// A stretch of an object, `len` bytes from `offset`, as of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub object: u32,
    pub offset: u64,
    pub len: u64,
    pub generation: u32,
}

/// Up to [`BLOCK_MAX`] bytes, and where they belong.
#[derive(Default)]
pub struct Block {
    bytes: Vec<u8>,
    len: usize,
    pieces: Vec<Piece>,
    /// Where the bytes lie that are not zero.
    pub runs: Vec<RunInBlock>,
    /// What is zero.
    pub zeros: Vec<Piece>,
    /// The bytes as they go into the frame; none where all are zero.
    pub encoded: Option<EncodedBlock>,
}

impl Block {
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn is_full(&self) -> bool {
        self.len == BLOCK_MAX
    }

    /// Where the next bytes go.
    pub fn room(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; BLOCK_MAX];
        }
        &mut self.bytes[self.len..]
    }

    /// Says what the next bytes of the room now hold; pieces that continue one another are joined.
    pub fn filled(&mut self, piece: Piece) {
        self.len += piece.len as usize;
        join(&mut self.pieces, piece);
    }

    /// Makes the block ready to be filled again.
    pub fn clear(&mut self) {
        self.len = 0;
        self.pieces.clear();
        self.runs.clear();
        self.zeros.clear();
        self.encoded = None;
    }

    /// Drops zero pages, moving what is left together, and compresses that.
    pub fn encode(&mut self, compression: Compression) -> Result<()> {
        let kept = self.drop_zeros();
        if kept > 0 {
            self.encoded = Some(encode(&self.bytes[..kept], compression)?);
        }
        Ok(())
    }

    fn drop_zeros(&mut self) -> usize {
        let (mut from, mut kept) = (0, 0);
        for piece in std::mem::take(&mut self.pieces) {
            let end = piece.offset + piece.len;
            let mut offset = piece.offset;
            while offset < end {
                let len = PAGE.min(end - offset);
                let page = from..from + len as usize;
                if is_zero(&self.bytes[page.clone()]) {
                    join(&mut self.zeros, Piece { offset, len, ..piece });
                } else {
                    self.bytes.copy_within(page, kept);
                    self.keep(Piece { offset, len, ..piece }, kept);
                    kept += len as usize;
                }
                offset += len;
                from += len as usize;
            }
        }
        kept
    }

    fn keep(&mut self, piece: Piece, at: usize) {
        let run = RunInBlock { object: piece.object, offset: piece.offset, at: at as u32, len: piece.len as u32, generation: piece.generation };
        match self.runs.last_mut() {
            Some(last) if (last.object, last.generation, last.offset + u64::from(last.len)) == (run.object, run.generation, run.offset) => last.len += run.len,
            _ => self.runs.push(run),
        }
    }
}

fn join(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last) if (last.object, last.generation, last.offset + last.len) == (piece.object, piece.generation, piece.offset) => last.len += piece.len,
        _ => pieces.push(piece),
    }
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages differ from zero early on.
    page.chunks(256).all(|part| part.iter().all(|&byte| byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_are_dropped_and_neighbours_joined() {
        let mut block = Block::default();
        let room = block.room();
        room[..4 * PAGE as usize].fill(1);
        room[PAGE as usize..2 * PAGE as usize].fill(0);
        block.filled(Piece { object: 7, offset: 0x10000, len: PAGE, generation: 3 });
        block.filled(Piece { object: 7, offset: 0x11000, len: 2 * PAGE, generation: 3 });
        block.filled(Piece { object: 8, offset: 100, len: PAGE, generation: 0 });
        assert_eq!(block.pieces.len(), 2);
        block.encode(Compression::None).unwrap();
        assert_eq!(block.zeros, [Piece { object: 7, offset: 0x11000, len: PAGE, generation: 3 }]);
        let runs: Vec<_> = block.runs.iter().map(|run| (run.object, run.offset, run.at, run.len, run.generation)).collect();
        let page = PAGE as u32;
        assert_eq!(runs, [(7, 0x10000, 0, page, 3), (7, 0x12000, page, page, 3), (8, 100, 2 * page, page, 0)]);
        assert_eq!(block.encoded.as_ref().unwrap().raw_len(), 3 * PAGE as usize);
        block.clear();
        assert!(block.is_empty() && block.runs.is_empty() && block.zeros.is_empty() && block.encoded.is_none());
    }
}
