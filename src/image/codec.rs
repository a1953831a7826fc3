//! Blocks: compression and checksum in one pure step, so that any number of threads can share the work.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ResetDirective};

use super::index::BlockEntry;
use super::{damaged, put, too_new, u32_at};
use crate::error::{Error, Kind, Result};

/// Most raw bytes that one block holds.
pub const BLOCK_MAX: usize = 1 << 20;
pub(super) const BLOCK_HEADER_LEN: usize = 20;
pub(super) const BLOCK_MAGIC: [u8; 4] = *b"SFBK";

/// Offsets of the fields of a block's header.
pub(super) mod at {
    pub const MAGIC: usize = 0;
    pub const CODEC: usize = 4;
    pub const RAW_LEN: usize = 8;
    pub const STORED_LEN: usize = 12;
    pub const CRC: usize = 16;
}

/// How a caller wants blocks compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// With zstd at this level, 1 to 19, or -1 to -100 for ever faster and weaker ones.
    Zstd(i32),
    /// As suits the data, and in a transfer the cores and the store too; a single block with zstd at level 1, unless a sample
    /// says that it would be work for nothing.
    Auto,
}

impl Default for Compression {
    fn default() -> Self {
        Compression::Zstd(1)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
            Compression::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => return Ok(Compression::None),
            "auto" => return Ok(Compression::Auto),
            "zstd" => return Ok(Compression::default()),
            _ => {}
        }
        let level = text.strip_prefix("zstd:").and_then(|level| level.parse().ok());
        match level {
            Some(level @ (-100..=-1 | 1..=19)) => Ok(Compression::Zstd(level)),
            _ => Err(Error::new(
                Kind::Usage,
                format!("compression '{text}' is unknown; use none, auto, zstd or zstd:LEVEL with a level from 1 to 19, or -1 to -100 for faster ones"),
            )),
        }
    }
}

impl Serialize for Compression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How stored bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// As one zstd frame.
    Zstd = 1,
}

impl Codec {
    pub(super) fn from_number(number: u32) -> Result<Self> {
        match number {
            0 => Ok(Codec::Raw),
            1 => Ok(Codec::Zstd),
            _ => Err(too_new(format!("compression method {number} is unknown"))),
        }
    }
}

/// One block as it will lie in the file, with its header.
#[derive(Debug, Clone)]
pub struct EncodedBlock {
    pub(super) bytes: Vec<u8>,
    pub(super) entry: BlockEntry,
}

impl EncodedBlock {
    /// How many bytes were put in.
    pub fn raw_len(&self) -> usize {
        self.entry.raw_len as usize
    }

    /// How many bytes the block takes in the file, its header included.
    pub fn file_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A checksum under way, of bytes as they will be stored.
#[derive(Debug, Clone, Default)]
pub struct Checksum(crc32fast::Hasher);

impl Checksum {
    /// Goes on with `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

/// The header of a block whose stored bytes lie elsewhere, and what the index will say of it.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    pub(super) bytes: [u8; BLOCK_HEADER_LEN],
    pub(super) entry: BlockEntry,
}

impl Head {
    /// For 1 to [`BLOCK_MAX`] bytes that are stored as they are and have this checksum.
    pub fn raw(len: usize, sum: &Checksum) -> Head {
        Head::new(Codec::Raw, len, len, sum)
    }

    /// For `raw_len` bytes that [`compress`] made `stored` of.
    pub fn zstd(raw_len: usize, stored: &[u8]) -> Head {
        let mut sum = Checksum::default();
        sum.update(stored);
        Head::new(Codec::Zstd, raw_len, stored.len(), &sum)
    }

    fn new(codec: Codec, raw_len: usize, stored_len: usize, sum: &Checksum) -> Head {
        // Both lengths are at most BLOCK_MAX.
        let (raw_len, stored_len) = (raw_len as u32, stored_len as u32);
        let mut bytes = [0; BLOCK_HEADER_LEN];
        put(&mut bytes, at::MAGIC, &BLOCK_MAGIC);
        put(&mut bytes, at::CODEC, &u32::from(codec as u8).to_le_bytes());
        put(&mut bytes, at::RAW_LEN, &raw_len.to_le_bytes());
        put(&mut bytes, at::STORED_LEN, &stored_len.to_le_bytes());
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..at::CRC]);
        hasher.combine(&sum.0);
        let crc = hasher.finalize();
        put(&mut bytes, at::CRC, &crc.to_le_bytes());
        Head { bytes, entry: BlockEntry { raw_len, stored_len, crc } }
    }

    /// How many bytes were put in.
    pub fn raw_len(&self) -> usize {
        self.entry.raw_len as usize
    }

    /// How many bytes are stored.
    pub fn stored_len(&self) -> usize {
        self.entry.stored_len as usize
    }

    /// How many bytes the block takes in the file, its header included.
    pub fn file_len(&self) -> usize {
        BLOCK_HEADER_LEN + self.stored_len()
    }
}

thread_local! {
    // A context costs about a megabyte to set up, as much as the block it works on.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Compresses and checksums up to [`BLOCK_MAX`] bytes; what does not shrink is stored as it is.
pub fn encode(raw: &[u8], compression: Compression) -> Result<EncodedBlock> {
    if raw.is_empty() || raw.len() > BLOCK_MAX {
        let what = format!("a block of {} bytes cannot be encoded; give it 1 to {BLOCK_MAX} bytes", raw.len());
        return Err(Error::new(Kind::Usage, what));
    }
    let mut bytes = vec![0; BLOCK_HEADER_LEN + raw.len()];
    let (codec, stored_len) = fill(raw, compression, &mut bytes[BLOCK_HEADER_LEN..]);
    bytes.truncate(BLOCK_HEADER_LEN + stored_len);
    let entry = seal(&mut bytes, codec, raw.len());
    Ok(EncodedBlock { bytes, entry })
}

/// Puts the raw or the compressed bytes into `out`, whichever are fewer.
fn fill(raw: &[u8], compression: Compression, out: &mut [u8]) -> (Codec, usize) {
    let level = match compression {
        Compression::None => None,
        Compression::Zstd(level) => Some(level),
        Compression::Auto => promising(raw).then_some(1),
    };
    // One byte short of the raw length: a result that saves nothing does not fit.
    let room = raw.len() - 1;
    if let Some(len) = level.and_then(|level| compress(raw, level, &mut out[..room])) {
        return (Codec::Zstd, len);
    }
    out.copy_from_slice(raw);
    (Codec::Raw, raw.len())
}

/// Compresses into `out`; the length of what came out, or nothing where it does not fit.
pub fn compress(raw: &[u8], level: i32, out: &mut [u8]) -> Option<usize> {
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Compressor::new(level).ok();
        }
        let context = slot.as_mut()?.context_mut();
        // What did not fit last time left the context in the middle of it.
        context.reset(ResetDirective::SessionOnly).ok()?;
        context.set_parameter(CParameter::CompressionLevel(level)).ok()?;
        context.compress2(out, raw).ok()
    })
}

/// Whether a sample, a kilobyte out of each of eight places, shrinks by an eighth or more.
pub fn promising(raw: &[u8]) -> bool {
    const PART: usize = 1024;
    const PARTS: usize = 8;
    if raw.len() <= 2 * PARTS * PART {
        return true;
    }
    let (mut sample, mut out) = ([0; PARTS * PART], [0; PARTS * PART * 7 / 8]);
    for (part, at) in sample.chunks_exact_mut(PART).zip((0..).step_by(raw.len() / PARTS)) {
        part.copy_from_slice(&raw[at..at + PART]);
    }
    compress(&sample, -1, &mut out).is_some()
}

/// Writes the header in front of the stored bytes.
fn seal(bytes: &mut [u8], codec: Codec, raw_len: usize) -> BlockEntry {
    let (header, stored) = bytes.split_at_mut(BLOCK_HEADER_LEN);
    let mut sum = Checksum::default();
    sum.update(stored);
    let head = Head::new(codec, raw_len, stored.len(), &sum);
    header.copy_from_slice(&head.bytes);
    head.entry
}

/// The checksum of a block: of its header up to the checksum, then of its stored bytes.
fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..at::CRC]);
    hasher.update(&bytes[BLOCK_HEADER_LEN..]);
    hasher.finalize()
}

impl EncodedBlock {
    /// A block as it lies in the file, checked against the index, all but whether it decompresses.
    pub(super) fn checked(bytes: Vec<u8>, entry: &BlockEntry) -> Result<EncodedBlock> {
        check(&bytes, checksum(&bytes), entry)?;
        Ok(EncodedBlock { bytes, entry: *entry })
    }
}

/// Checks a block's header, and what checksum was `found` for the whole, against the index.
pub(super) fn check(header: &[u8], found: u32, entry: &BlockEntry) -> Result<Codec> {
    if found != entry.crc || u32_at(header, at::CRC) != entry.crc {
        return Err(damaged(format!("checksum is {found:08x}, should be {:08x}", entry.crc)));
    }
    let lengths = (u32_at(header, at::RAW_LEN), u32_at(header, at::STORED_LEN));
    if header[..BLOCK_MAGIC.len()] != BLOCK_MAGIC || lengths != (entry.raw_len, entry.stored_len) {
        return Err(damaged("its header does not agree with the index"));
    }
    match (Codec::from_number(u32_at(header, at::CODEC))?, entry.raw_len == entry.stored_len) {
        (Codec::Raw, false) => Err(damaged("its two lengths differ without compression")),
        (Codec::Zstd, true) => Err(damaged("its two lengths are equal in spite of compression")),
        (codec, _) => Ok(codec),
    }
}

/// Fills all of `out`.
pub(super) fn decompress(stored: &[u8], out: &mut [u8]) -> Result<()> {
    let raw_len = out.len();
    let len = DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(ready) => ready,
            None => slot.insert(Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(stored, out)
    });
    match len {
        Ok(len) if len == raw_len => Ok(()),
        Ok(len) => Err(damaged(format!("it holds {len} bytes, should hold {raw_len}"))),
        Err(e) => Err(damaged(format!("it does not decompress ({e})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::block::Block;

    fn decoded(block: &EncodedBlock) -> Result<Vec<u8>> {
        let mut buffer = Block::default();
        let mut early = Vec::new();
        let read = |at: u64, out: &mut [u8]| {
            out.copy_from_slice(&block.bytes[at as usize..][..out.len()]);
            Ok(())
        };
        buffer.load(&block.entry, read, Some(&mut |at: usize, bytes: &[u8]| {
            assert_eq!(at, early.len());
            early.extend_from_slice(bytes);
            Ok(())
        }))?;
        assert!(buffer.raw().is_empty());
        buffer.load(&block.entry, read, None)?;
        assert!(early == buffer.raw());
        Ok(early)
    }

    fn round_trip(raw: &[u8], compression: Compression) -> EncodedBlock {
        let block = encode(raw, compression).unwrap();
        assert_eq!(decoded(&block).unwrap(), raw);
        block
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let step = |_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        (0..len).map(step).collect()
    }

    #[test]
    fn compression_is_read_and_shown_alike() {
        for text in ["none", "auto", "zstd:1", "zstd:19", "zstd:-1", "zstd:-100"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!("zstd".parse::<Compression>().unwrap(), Compression::Zstd(1));
        assert_eq!(serde_json::to_string(&Compression::Zstd(3)).unwrap(), "\"zstd:3\"");
        for text in ["", "zstd:", "zstd:0", "zstd:20", "zstd:-101", "gzip", "None"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_shrinks_is_compressed_and_what_does_not_is_kept_raw() {
        let text = b"all work and no play ".repeat(20_000);
        for compression in [Compression::Zstd(1), Compression::Zstd(19), Compression::Zstd(-20), Compression::Auto] {
            assert!(round_trip(&text, compression).file_len() < text.len() / 20);
        }
        let noise = noise(BLOCK_MAX);
        for compression in [Compression::None, Compression::Zstd(1), Compression::Auto] {
            assert_eq!(round_trip(&noise, compression).file_len(), noise.len() + BLOCK_HEADER_LEN);
        }
        round_trip(b"x", Compression::Zstd(1));
    }

    #[test]
    fn a_head_made_apart_is_that_of_the_block() {
        let raw = noise(100_000);
        let mut sum = Checksum::default();
        raw.chunks(4096).for_each(|page| sum.update(page));
        let block = encode(&raw, Compression::None).unwrap();
        assert_eq!(Head::raw(raw.len(), &sum).bytes, block.bytes[..BLOCK_HEADER_LEN]);
        let block = encode(&[3; 5000], Compression::Zstd(1)).unwrap();
        let head = Head::zstd(5000, &block.bytes[BLOCK_HEADER_LEN..]);
        assert_eq!((&head.bytes[..], head.entry), (&block.bytes[..BLOCK_HEADER_LEN], block.entry));
        assert_eq!((head.raw_len(), head.file_len()), (5000, block.file_len()));
    }

    #[test]
    fn a_sample_tells_noise_from_text() {
        let (noise, text) = (noise(BLOCK_MAX), b"all work and no play ".repeat(20_000));
        assert!(!promising(&noise));
        assert!(promising(&text));
        assert!(promising(&[&noise[..BLOCK_MAX / 2], &text[..BLOCK_MAX / 4]].concat()));
        assert!(promising(&noise[..100]), "too short to be worth a look");
    }

    #[test]
    fn noise_does_not_spoil_what_comes_after() {
        let (noise, text) = (noise(BLOCK_MAX), b"all work and no play ".repeat(20_000));
        for level in [1, 5, -3] {
            round_trip(&noise, Compression::Zstd(level));
            assert!(round_trip(&text, Compression::Zstd(level)).file_len() < text.len() / 10);
        }
    }

    #[test]
    fn empty_and_oversized_blocks_are_refused() {
        assert_eq!(encode(&[], Compression::None).unwrap_err().kind(), Kind::Usage);
        assert_eq!(encode(&vec![0; BLOCK_MAX + 1], Compression::None).unwrap_err().kind(), Kind::Usage);
    }

    #[test]
    fn lies_under_a_right_checksum_are_found() {
        let lies: [(usize, u8, &str); 4] =
            [(at::MAGIC, 0, "index"), (at::CODEC, 9, "method 9"), (at::RAW_LEN, 9, "index"), (at::CODEC, 0, "lengths")];
        for (place, value, words) in lies {
            let mut block = encode(&[7; 4096], Compression::Zstd(1)).unwrap();
            block.bytes[place] = value;
            block.entry.crc = checksum(&block.bytes);
            let crc = block.entry.crc.to_le_bytes();
            put(&mut block.bytes, at::CRC, &crc);
            let error = decoded(&block).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
