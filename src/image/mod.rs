//! Frames as bytes: one frame is one file, every byte of it covered by a check. Knows no process.
//!
//! A frame holds numbered *objects* (an address space, a shared memory object, the content of a saved file), each made
//! of [`Run`]s: stretches of bytes that lie in a block, that are zero and take no room, or that are what the parent frame
//! has there. `FORMAT.md` beside this file says what each byte of the file means; a test keeps its tables true.

mod block;
mod chain;
mod codec;
mod family;
mod footer;
#[cfg(test)]
mod format_test;
mod header;
mod index;
mod overlay;
mod reader;
mod rewrite;
mod section;
mod sink;
mod writer;

pub use block::{Block, Early};
pub use chain::{BlockId, Chain, Piece, Source, Verifier};
pub use codec::{compress, encode, promising, Checksum, Codec, Compression, EncodedBlock, Head, BLOCK_MAX};
pub use family::SUFFIX;
pub use header::{FrameId, Header, FORMAT_VERSION, HEADER_LEN};
pub use index::BlockEntry;
pub use reader::{read_header, FrameReader, Verified};
pub use writer::{FrameWriter, RunInBlock, Written};

use crate::error::Error;

/// A stretch of bytes of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Which object the bytes belong to.
    pub object: u32,
    /// Where in the object they start.
    pub offset: u64,
    /// How many there are; never zero.
    pub len: u64,
    /// Where the frame keeps them.
    pub place: Place,
}

impl Run {
    /// Offset behind the last byte; a run that passed a check of its bounds cannot overflow here.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// The piece from offset `start` to offset `end`, which the caller knows to lie inside.
    fn part(&self, start: u64, end: u64) -> Run {
        let place = match self.place {
            // The run lies inside one block, so that what is skipped is less than BLOCK_MAX.
            Place::Data { block, at } => Place::Data { block, at: at + (start - self.offset) as u32 },
            place => place,
        };
        Run { object: self.object, offset: start, len: end - start, place }
    }
}

/// Where a frame keeps the bytes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In block number `block`, from byte `at` of its raw content.
    Data {
        /// Number of the block, counted from zero.
        block: u32,
        /// Offset into the raw content of the block.
        at: u32,
    },
    /// Nowhere: the bytes read as zero.
    Zero,
    /// In the parent frame, at the same offset of one of its objects: data, zero, or no bytes at all.
    Parent {
        /// Number of the object there.
        object: u32,
    },
}

/// A frame whose bytes are not what its writer wrote; the reader puts the path in front.
fn damaged(what: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("{what}; the frame is damaged, use another one"))
}

/// A frame that uses something this program does not know; the reader puts the path in front.
fn too_new(what: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("{what}; use a newer stillframe"))
}

/// The little-endian number at `at`; callers pass structures of a fixed, checked length.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// The little-endian number at `at`; callers pass structures of a fixed, checked length.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// `N` bytes from `at`; callers pass structures of a fixed, checked length.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

/// Puts `value` at `at` of a structure of a fixed length.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
