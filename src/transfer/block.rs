//! A block on its way: filled by the feed, emptied of zero pages and encoded by a worker, written, and filled again.

use std::time::Duration;

use crate::error::{Context, Result};
use crate::image::{compress, Checksum, Head, RunInBlock, BLOCK_MAX};
use crate::sys::direct::Buffer;
use crate::sys::PAGE;

/// A stretch of an object, `len` bytes from `offset`, as of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub object: u32,
    pub offset: u64,
    pub len: u64,
    pub generation: u32,
}

/// Up to [`BLOCK_MAX`] bytes, and where they belong. What it takes in memory is taken as it is first needed, and kept.
pub struct Block {
    raw: Buffer,
    /// How many bytes are filled in; after encoding, how many are left.
    len: usize,
    /// How many it takes at most.
    size: usize,
    pieces: Vec<Piece>,
    packed: Vec<u8>,
    /// Where the bytes lie that are not zero.
    pub runs: Vec<RunInBlock>,
    /// What is zero.
    pub zeros: Vec<Piece>,
    head: Option<Head>,
    is_packed: bool,
    /// How long it took to fill.
    pub reading: Duration,
    /// How long it took to encode.
    pub encoding: Duration,
}

impl Block {
    /// An empty block that takes `size` bytes at most.
    pub fn new(size: usize) -> Result<Block> {
        let raw = Buffer::new(BLOCK_MAX).context("cannot take memory for the transfer")?;
        let size = size.min(BLOCK_MAX);
        Ok(Block {
            raw,
            len: 0,
            size,
            pieces: Vec::new(),
            packed: Vec::new(),
            runs: Vec::new(),
            zeros: Vec::new(),
            head: None,
            is_packed: false,
            reading: Duration::ZERO,
            encoding: Duration::ZERO,
        })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_full(&self) -> bool {
        self.len == self.size
    }

    /// Where the next bytes go.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.raw[self.len..self.size]
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
        self.head = None;
        (self.reading, self.encoding) = (Duration::ZERO, Duration::ZERO);
    }

    /// Drops zero pages, moving what is left together; checksums that in the same pass if asked to.
    pub fn drop_zeros(&mut self, mut sum: Option<&mut Checksum>) {
        let (mut from, mut kept) = (0, 0);
        for piece in self.pieces.drain(..) {
            let end = piece.offset + piece.len;
            let mut offset = piece.offset;
            while offset < end {
                let len = PAGE.min(end - offset);
                let page = Piece { offset, len, ..piece };
                let bytes = from..from + len as usize;
                if is_zero(&self.raw[bytes.clone()]) {
                    join(&mut self.zeros, page);
                } else {
                    sum.iter_mut().for_each(|sum| sum.update(&self.raw[bytes.clone()]));
                    keep(&mut self.runs, page, kept);
                    if from > kept {
                        self.raw.copy_within(bytes, kept);
                    }
                    kept += len as usize;
                }
                offset += len;
                from += len as usize;
            }
        }
        self.len = kept;
    }

    /// What is left of the raw bytes.
    pub fn raw(&self) -> &[u8] {
        &self.raw[..self.len]
    }

    /// Has the raw bytes, if any, stored as they are.
    pub fn store(&mut self, sum: &Checksum) {
        self.is_packed = false;
        self.head = (self.len > 0).then(|| Head::raw(self.len, sum));
    }

    /// Compresses the raw bytes, if that makes them fewer.
    pub fn pack(&mut self, level: i32) -> bool {
        // One byte short of the raw length: a result that saves nothing does not fit.
        let room = self.len.saturating_sub(1);
        if self.packed.len() < room {
            self.packed.resize(self.size, 0);
        }
        let packed = compress(&self.raw[..self.len], level, &mut self.packed[..room]);
        self.head = packed.map(|len| Head::zstd(self.len, &self.packed[..len]));
        self.is_packed = self.head.is_some();
        self.is_packed
    }

    /// The block as it goes into the frame; nothing where all was zero.
    pub fn encoded(&self) -> Option<(&Head, &[u8])> {
        let head = self.head.as_ref()?;
        Some((head, if self.is_packed { &self.packed[..head.stored_len()] } else { self.raw() }))
    }
}

fn keep(runs: &mut Vec<RunInBlock>, page: Piece, at: usize) {
    let run = RunInBlock { object: page.object, offset: page.offset, at: at as u32, len: page.len as u32, generation: page.generation };
    match runs.last_mut() {
        Some(last) if (last.object, last.generation, last.offset + u64::from(last.len)) == (run.object, run.generation, run.offset) => last.len += run.len,
        _ => runs.push(run),
    }
}

fn join(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last) if (last.object, last.generation, last.offset + last.len) == (piece.object, piece.generation, piece.offset) => last.len += piece.len,
        _ => pieces.push(piece),
    }
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages differ from zero early on. The inner loop has no way out, so that the compiler makes vectors of it.
    page.chunks(256).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: usize = PAGE as usize;

    /// Four pages of three pieces, the second page zero.
    fn block() -> Block {
        let mut block = Block::new(BLOCK_MAX).unwrap();
        for (page, byte) in block.room().chunks_mut(WHOLE).zip([1, 0, 2, 3]) {
            page.fill(byte);
        }
        block.filled(Piece { object: 7, offset: 0x10000, len: PAGE, generation: 3 });
        block.filled(Piece { object: 7, offset: 0x11000, len: 2 * PAGE, generation: 3 });
        block.filled(Piece { object: 8, offset: 100, len: PAGE, generation: 0 });
        block
    }

    #[test]
    fn zero_pages_are_dropped_and_neighbours_joined() {
        let mut block = block();
        assert_eq!(block.pieces.len(), 2);
        let mut sum = Checksum::default();
        block.drop_zeros(Some(&mut sum));
        block.store(&sum);
        assert_eq!(block.zeros, [Piece { object: 7, offset: 0x11000, len: PAGE, generation: 3 }]);
        let runs: Vec<_> = block.runs.iter().map(|run| (run.object, run.offset, run.at, run.len, run.generation)).collect();
        let page = PAGE as u32;
        assert_eq!(runs, [(7, 0x10000, 0, page, 3), (7, 0x12000, page, page, 3), (8, 100, 2 * page, page, 0)]);
        let (head, stored) = block.encoded().unwrap();
        assert_eq!((head.raw_len(), stored), (3 * WHOLE, &[[1; WHOLE], [2; WHOLE], [3; WHOLE]].concat()[..]));
    }

    #[test]
    fn a_cleared_block_is_as_new() {
        let mut block = block();
        block.drop_zeros(None);
        assert!(block.pack(1) && block.encoded().is_some());
        block.clear();
        assert!(block.len() == 0 && block.runs.is_empty() && block.zeros.is_empty() && block.encoded().is_none());
        block.room()[..WHOLE].fill(0);
        block.filled(Piece { object: 1, offset: 0, len: PAGE, generation: 0 });
        block.drop_zeros(None);
        assert!(block.len() == 0 && block.zeros.len() == 1 && block.encoded().is_none());
    }

    #[test]
    fn one_byte_anywhere_makes_a_page_data() {
        let mut page = vec![0; WHOLE];
        assert!(is_zero(&page) && is_zero(&page[..77]) && is_zero(&[]));
        for at in [0, 1, 255, 256, 3000, WHOLE - 1] {
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
    }
}
