//! Memory in which one block after another is read, checked and decompressed.

use std::fmt;

use super::codec::{at, check, decompress, Codec, BLOCK_HEADER_LEN, BLOCK_MAX};
use super::index::BlockEntry;
use crate::error::{Error, Result};
use crate::sys::direct::Buffer;

/// How much of a block is read, checked and handed on at a time: little enough to stay in the processor's cache in between.
const PIECE: usize = 128 << 10;

/// Memory for one block after another; what is stored raw is never copied.
#[derive(Default)]
pub struct Block {
    /// As they lie in the file behind the block's header. They start at a page, since the kernel copies from there faster.
    stored: Option<Buffer>,
    /// What came out, where the stored bytes are compressed.
    inflated: Vec<u8>,
    /// Which of the two holds how many raw bytes; none before a block is checked.
    raw: Option<(Codec, usize)>,
}

impl Block {
    /// The raw bytes of the block that was read last; none after a failure.
    pub fn raw(&self) -> &[u8] {
        match (self.raw, &self.stored) {
            (Some((Codec::Raw, len)), Some(stored)) => &stored[..len],
            (Some((Codec::Zstd, len)), _) => &self.inflated[..len],
            _ => &[],
        }
    }

    /// Takes all memory that a block stored raw needs, so that reading it later does not wait for that.
    pub fn prepare(&mut self) -> Result<()> {
        room(&mut self.stored).map(|stored| stored.fill(0))
    }

    /// Reads a block with `read` (an offset into what the file has of it, and where to put what is there), checks it against the
    /// index and decompresses it. If there is an `early`, that gets the raw bytes piece by piece, and `raw` is empty after. Some come
    /// before all is checked: they are right only if the outcome is good.
    pub(super) fn load(&mut self, entry: &BlockEntry, read: impl Fn(u64, &mut [u8]) -> Result<()>, mut early: Option<&mut Early<'_>>) -> Result<()> {
        self.raw = None;
        let mut header = [0; BLOCK_HEADER_LEN];
        read(0, &mut header)?;
        let stored = room(&mut self.stored)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&header[..at::CRC]);
        let (mut from, len) = (0, entry.stored_len as usize);
        // Compressed bytes are fewer.
        let mut pass = early.as_mut().filter(|_| entry.raw_len == entry.stored_len);
        while from < len {
            // What is passed on need not be kept.
            let to = if pass.is_some() { 0 } else { from };
            let piece = &mut stored[to..to + PIECE.min(len - from)];
            read((BLOCK_HEADER_LEN + from) as u64, piece)?;
            hasher.update(piece);
            pass.as_mut().map_or(Ok(()), |pass| pass(from, piece))?;
            from += piece.len();
        }
        let codec = check(&header, hasher.finalize(), entry)?;
        if codec == Codec::Zstd {
            self.inflated.resize(self.inflated.len().max(entry.raw_len as usize), 0);
            let out = &mut self.inflated[..entry.raw_len as usize];
            decompress(&stored[..len], out)?;
            early.as_mut().map_or(Ok(()), |early| early(0, out))?;
        }
        self.raw = early.is_none().then_some((codec, entry.raw_len as usize));
        Ok(())
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("raw", &self.raw).finish_non_exhaustive()
    }
}

/// Gets raw bytes of a block, piece by piece: their offset in the block, and the bytes.
pub type Early<'a> = dyn FnMut(usize, &[u8]) -> Result<()> + 'a;

/// Room for the stored bytes of any block.
fn room(slot: &mut Option<Buffer>) -> Result<&mut Buffer> {
    match slot {
        Some(room) => Ok(room),
        none => Ok(none.insert(Buffer::new(BLOCK_MAX).map_err(|e| Error::io("cannot take memory for a block", e))?)),
    }
}
