//! The last bytes of a frame; without them a file is a half-written frame.

use super::header::{FrameId, HEADER_LEN};
use super::section::Section;
use super::{array_at, damaged, put, u32_at, u64_at};
use crate::error::Result;

pub(super) const FOOTER_LEN: usize = 96;
pub(super) const END_MAGIC: [u8; 4] = *b"SFND";

/// Offsets of the footer's fields.
pub(super) mod at {
    pub const INDEX: usize = 0;
    pub const MANIFEST: usize = 32;
    pub const FILE_LEN: usize = 64;
    pub const ID: usize = 72;
    pub const CRC: usize = 88;
    pub const END_MAGIC: usize = 92;
}

/// Offsets of the fields that describe one section.
pub(super) mod section_at {
    pub const OFFSET: usize = 0;
    pub const STORED_LEN: usize = 8;
    pub const RAW_LEN: usize = 16;
    pub const CODEC: usize = 24;
    pub const CRC: usize = 28;
}

/// Where everything behind the blocks lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    pub index: Section,
    pub manifest: Section,
    pub file_len: u64,
    pub id: FrameId,
}

impl Footer {
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        put_section(&mut bytes[at::INDEX..], &self.index);
        put_section(&mut bytes[at::MANIFEST..], &self.manifest);
        put(&mut bytes, at::FILE_LEN, &self.file_len.to_le_bytes());
        put(&mut bytes, at::ID, &self.id.0);
        let crc = crc32fast::hash(&bytes[..at::CRC]);
        put(&mut bytes, at::CRC, &crc.to_le_bytes());
        put(&mut bytes, at::END_MAGIC, &END_MAGIC);
        bytes
    }

    /// Reads the footer of a file that is `file_len` bytes long.
    pub fn decode(bytes: &[u8; FOOTER_LEN], file_len: u64) -> Result<Self> {
        if bytes[at::END_MAGIC..] != END_MAGIC {
            return Err(damaged("it does not end as a frame does, its writing was never finished or it was cut"));
        }
        let (stored, found) = (u32_at(bytes, at::CRC), crc32fast::hash(&bytes[..at::CRC]));
        if stored != found {
            return Err(damaged(format!("checksum is {found:08x}, should be {stored:08x}")));
        }
        let footer = Footer {
            index: section(&bytes[at::INDEX..]),
            manifest: section(&bytes[at::MANIFEST..]),
            file_len: u64_at(bytes, at::FILE_LEN),
            id: FrameId(array_at(bytes, at::ID)),
        };
        footer.check(file_len)?;
        Ok(footer)
    }

    /// Sections and footer must follow one another without a gap, or some byte would go unchecked.
    fn check(&self, file_len: u64) -> Result<()> {
        if self.file_len != file_len {
            return Err(damaged(format!("the file has {file_len} bytes, should have {}", self.file_len)));
        }
        let tiled = self.index.offset >= HEADER_LEN as u64
            && self.index.end() == Some(self.manifest.offset)
            && self.manifest.end().and_then(|end| end.checked_add(FOOTER_LEN as u64)) == Some(file_len);
        match tiled {
            true => Ok(()),
            false => Err(damaged("index and manifest are not where they belong")),
        }
    }
}

fn put_section(bytes: &mut [u8], section: &Section) {
    put(bytes, section_at::OFFSET, &section.offset.to_le_bytes());
    put(bytes, section_at::STORED_LEN, &section.stored_len.to_le_bytes());
    put(bytes, section_at::RAW_LEN, &section.raw_len.to_le_bytes());
    put(bytes, section_at::CODEC, &section.codec.to_le_bytes());
    put(bytes, section_at::CRC, &section.crc.to_le_bytes());
}

fn section(bytes: &[u8]) -> Section {
    Section {
        offset: u64_at(bytes, section_at::OFFSET),
        stored_len: u64_at(bytes, section_at::STORED_LEN),
        raw_len: u64_at(bytes, section_at::RAW_LEN),
        codec: u32_at(bytes, section_at::CODEC),
        crc: u32_at(bytes, section_at::CRC),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        let index = Section { offset: 100, stored_len: 20, raw_len: 40, codec: 1, crc: 5 };
        let manifest = Section { offset: 120, stored_len: 30, raw_len: 30, codec: 0, crc: 6 };
        Footer { index, manifest, file_len: 150 + FOOTER_LEN as u64, id: FrameId([3; 16]) }
    }

    #[test]
    fn footer_survives_the_round_trip() {
        assert_eq!(Footer::decode(&footer().encode(), footer().file_len).unwrap(), footer());
        assert!(Footer::decode(&footer().encode(), footer().file_len + 1).is_err());
    }

    #[test]
    fn gaps_overlaps_and_overflows_are_refused() {
        let spoil: [fn(&mut Footer); 5] = [
            |f| f.index.offset = 95,
            |f| f.index.stored_len = 19,
            |f| f.manifest.offset = 121,
            |f| f.manifest.stored_len = u64::MAX,
            |f| f.index.stored_len = u64::MAX - 99 + 20,
        ];
        for spoil in spoil {
            let mut footer = footer();
            spoil(&mut footer);
            assert!(Footer::decode(&footer.encode(), footer.file_len).is_err(), "{footer:?}");
        }
    }
}
