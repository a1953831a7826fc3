//! The two stretches behind the blocks, index and manifest: compressed, checksummed, located by the footer.

use std::io::Read;

use super::codec::Codec;
use super::damaged;
use crate::error::{Error, Result};

/// Where a section lies and how it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Section {
    pub offset: u64,
    pub stored_len: u64,
    pub raw_len: u64,
    pub codec: u32,
    pub crc: u32,
}

/// Quick, and within a few percent of what far slower levels reach on an index.
const LEVEL: i32 = 3;
/// What takes less than this part of the file is stored as it is: a reader has it sooner, and the file is hardly longer.
const SMALL: u64 = 32;

impl Section {
    /// The bytes to be stored at `offset`, and their description.
    pub fn pack(raw: &[u8], offset: u64) -> Result<(Section, Vec<u8>)> {
        let large = raw.len() as u64 > offset / SMALL;
        let packed = large.then(|| zstd::bulk::compress(raw, LEVEL)).transpose().map_err(|e| Error::io("cannot compress the frame's index", e))?;
        let (codec, stored) = match packed.filter(|packed| packed.len() < raw.len()) {
            Some(packed) => (Codec::Zstd, packed),
            None => (Codec::Raw, raw.to_vec()),
        };
        let section = Section {
            offset,
            stored_len: stored.len() as u64,
            raw_len: raw.len() as u64,
            codec: codec as u32,
            crc: crc32fast::hash(&stored),
        };
        Ok((section, stored))
    }

    /// The raw bytes again, out of the stored ones.
    pub fn unpack(&self, stored: Vec<u8>) -> Result<Vec<u8>> {
        let found = crc32fast::hash(&stored);
        if found != self.crc {
            return Err(damaged(format!("checksum is {found:08x}, should be {:08x}", self.crc)));
        }
        let raw = match Codec::from_number(self.codec)? {
            Codec::Raw => stored,
            Codec::Zstd => self.inflate(&stored)?,
        };
        if raw.len() as u64 != self.raw_len {
            return Err(damaged(format!("it does not hold the {} bytes that the footer says", self.raw_len)));
        }
        Ok(raw)
    }

    /// Grows with what really comes out, never with what a length field claims.
    fn inflate(&self, stored: &[u8]) -> Result<Vec<u8>> {
        let mut raw = Vec::new();
        let read = zstd::Decoder::with_buffer(stored)
            .and_then(|decoder| decoder.take(self.raw_len.saturating_add(1)).read_to_end(&mut raw));
        match read {
            Ok(_) => Ok(raw),
            Err(e) => Err(damaged(format!("it does not decompress ({e})"))),
        }
    }

    /// Offset behind the last stored byte.
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.stored_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_survive_the_round_trip() {
        for raw in [Vec::new(), b"{}".to_vec(), vec![5; 3 << 20]] {
            let (section, stored) = Section::pack(&raw, 7).unwrap();
            assert!(stored.len() <= raw.len());
            assert_eq!(section.unpack(stored).unwrap(), raw);
        }
    }

    #[test]
    fn what_is_small_beside_the_blocks_is_stored_as_it_is() {
        for (blocks, codec) in [(32 * 5000, Codec::Raw), (32 * 5000 - 1, Codec::Zstd)] {
            let (section, stored) = Section::pack(&[7; 5000], blocks).unwrap();
            assert_eq!(section.codec, codec as u32);
            assert_eq!(section.unpack(stored).unwrap(), [7; 5000]);
        }
    }

    #[test]
    fn wrong_lengths_are_found_without_believing_them() {
        let (section, stored) = Section::pack(&[1; 5000], 0).unwrap();
        for raw_len in [0, 4999, 5001, u64::MAX] {
            let error = Section { raw_len, ..section }.unpack(stored.clone()).unwrap_err();
            assert!(error.to_string().contains("does not hold"), "{error}");
        }
    }
}
