//! Which block, or no block at all, holds which bytes of which object.

use super::codec::{BLOCK_HEADER_LEN, BLOCK_MAX};
use super::header::HEADER_LEN;
use super::{damaged, put, too_new, u32_at, u64_at, Place, Run};
use crate::error::Result;

pub(super) const PREAMBLE_LEN: usize = 16;
pub(super) const BLOCK_ENTRY_LEN: usize = 12;
pub(super) const RUN_ENTRY_LEN: usize = 32;

pub(super) const KIND_DATA: u32 = 0;
pub(super) const KIND_ZERO: u32 = 1;
/// Bytes that the parent frame holds.
pub(super) const KIND_PARENT: u32 = 2;

/// Offsets of the counts in front of the entries.
pub(super) mod at {
    pub const BLOCKS: usize = 0;
    pub const RUNS: usize = 8;
}

/// Offsets of the fields of a block's entry.
pub(super) mod block_at {
    pub const RAW_LEN: usize = 0;
    pub const STORED_LEN: usize = 4;
    pub const CRC: usize = 8;
}

/// Offsets of the fields of a run's entry.
pub(super) mod run_at {
    pub const OBJECT: usize = 0;
    pub const KIND: usize = 4;
    pub const OFFSET: usize = 8;
    pub const LEN: usize = 16;
    pub const BLOCK: usize = 24;
    pub const AT: usize = 28;
}

/// What the index says of one block. Its place in the file is the sum of the blocks before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockEntry {
    /// Bytes it holds.
    pub raw_len: u32,
    /// Bytes they take in the file, without the block's header.
    pub stored_len: u32,
    /// Checksum of its header and stored bytes.
    pub crc: u32,
}

impl BlockEntry {
    /// Bytes the block takes in the file, its header included.
    pub fn file_len(&self) -> u64 {
        BLOCK_HEADER_LEN as u64 + u64::from(self.stored_len)
    }
}

/// All blocks in file order, and all runs sorted by object and offset.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Index {
    pub blocks: Vec<BlockEntry>,
    pub runs: Vec<Run>,
}

impl Index {
    pub fn encode(&self) -> Vec<u8> {
        let len = PREAMBLE_LEN + self.blocks.len() * BLOCK_ENTRY_LEN + self.runs.len() * RUN_ENTRY_LEN;
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&(self.blocks.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&(self.runs.len() as u64).to_le_bytes());
        self.blocks.iter().for_each(|block| bytes.extend_from_slice(&encode_block(block)));
        self.runs.iter().for_each(|run| bytes.extend_from_slice(&encode_run(run)));
        bytes
    }

    /// Reads an index that lies at `offset` of the file, right behind the blocks, and checks that it fits together; only
    /// where the frame names a `parent` may runs be of that.
    pub fn decode(bytes: &[u8], offset: u64, parent: bool) -> Result<Self> {
        let (blocks, runs) = split(bytes).ok_or_else(|| damaged("its counts do not fit its length"))?;
        let blocks: Vec<BlockEntry> = blocks.chunks_exact(BLOCK_ENTRY_LEN).map(decode_block).collect();
        check_blocks(&blocks, offset)?;
        let mut all = Vec::with_capacity(runs.len() / RUN_ENTRY_LEN);
        for (number, entry) in runs.chunks_exact(RUN_ENTRY_LEN).enumerate() {
            all.push(decode_run(entry, &blocks, number)?);
        }
        check_order(&all)?;
        check_parent(&all, parent)?;
        Ok(Index { blocks, runs: all })
    }
}

/// Makes `run` swallow `next` where both are one stretch in the object and in the frame.
pub(super) fn join(run: &mut Run, next: &Run) -> bool {
    let adjacent = run.object == next.object && run.end() == next.offset;
    let together = match (run.place, next.place) {
        (Place::Zero, Place::Zero) => true,
        (Place::Parent { object }, Place::Parent { object: other }) => object == other,
        (Place::Data { block, at }, Place::Data { block: other, at: next_at }) => {
            block == other && u64::from(at) + run.len == u64::from(next_at)
        }
        _ => false,
    };
    if adjacent && together {
        run.len += next.len;
    }
    adjacent && together
}

fn overlap(pair: &[Run]) -> bool {
    pair[0].object == pair[1].object && pair[0].end() > pair[1].offset
}

/// The block entries and the run entries, if both counts match the length to the byte.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (counts, entries) = bytes.split_at_checked(PREAMBLE_LEN)?;
    let blocks = usize::try_from(u64_at(counts, at::BLOCKS)).ok()?.checked_mul(BLOCK_ENTRY_LEN)?;
    let runs = usize::try_from(u64_at(counts, at::RUNS)).ok()?.checked_mul(RUN_ENTRY_LEN)?;
    let (blocks, rest) = entries.split_at_checked(blocks)?;
    (rest.len() == runs).then_some((blocks, rest))
}

fn encode_block(block: &BlockEntry) -> [u8; BLOCK_ENTRY_LEN] {
    let mut entry = [0; BLOCK_ENTRY_LEN];
    put(&mut entry, block_at::RAW_LEN, &block.raw_len.to_le_bytes());
    put(&mut entry, block_at::STORED_LEN, &block.stored_len.to_le_bytes());
    put(&mut entry, block_at::CRC, &block.crc.to_le_bytes());
    entry
}

fn decode_block(entry: &[u8]) -> BlockEntry {
    BlockEntry {
        raw_len: u32_at(entry, block_at::RAW_LEN),
        stored_len: u32_at(entry, block_at::STORED_LEN),
        crc: u32_at(entry, block_at::CRC),
    }
}

/// Blocks have sane lengths and fill the room between header and index to the byte.
fn check_blocks(blocks: &[BlockEntry], offset: u64) -> Result<()> {
    let sane = |block: &BlockEntry| 0 < block.stored_len && block.stored_len <= block.raw_len;
    let bad = |block: &BlockEntry| !sane(block) || block.raw_len as usize > BLOCK_MAX;
    if let Some(number) = blocks.iter().position(bad) {
        return Err(damaged(format!("the lengths of block {number} are impossible")));
    }
    // Cannot overflow: each block is at most BLOCK_MAX, and their entries are in memory.
    let end = HEADER_LEN as u64 + blocks.iter().map(BlockEntry::file_len).sum::<u64>();
    match end == offset {
        true => Ok(()),
        false => Err(damaged(format!("its blocks end at offset {end}, should end at {offset}"))),
    }
}

fn encode_run(run: &Run) -> [u8; RUN_ENTRY_LEN] {
    let (kind, block, at) = match run.place {
        Place::Data { block, at } => (KIND_DATA, block, at),
        Place::Zero => (KIND_ZERO, 0, 0),
        Place::Parent { object } => (KIND_PARENT, object, 0),
    };
    let mut entry = [0; RUN_ENTRY_LEN];
    put(&mut entry, run_at::OBJECT, &run.object.to_le_bytes());
    put(&mut entry, run_at::KIND, &kind.to_le_bytes());
    put(&mut entry, run_at::OFFSET, &run.offset.to_le_bytes());
    put(&mut entry, run_at::LEN, &run.len.to_le_bytes());
    put(&mut entry, run_at::BLOCK, &block.to_le_bytes());
    put(&mut entry, run_at::AT, &at.to_le_bytes());
    entry
}

fn decode_run(entry: &[u8], blocks: &[BlockEntry], number: usize) -> Result<Run> {
    let (object, offset) = (u32_at(entry, run_at::OBJECT), u64_at(entry, run_at::OFFSET));
    let (len, kind) = (u64_at(entry, run_at::LEN), u32_at(entry, run_at::KIND));
    let (block, at) = (u32_at(entry, run_at::BLOCK), u32_at(entry, run_at::AT));
    let (place, fits) = match kind {
        KIND_DATA => (Place::Data { block, at }, fits(blocks, block, at, len)),
        KIND_ZERO => (Place::Zero, block == 0 && at == 0),
        KIND_PARENT => (Place::Parent { object: block }, at == 0),
        _ => return Err(too_new(format!("run {number} is of the unknown kind {kind}"))),
    };
    if !fits || len == 0 || offset.checked_add(len).is_none() {
        return Err(damaged(format!("run {number} of object {object} is out of bounds")));
    }
    Ok(Run { object, offset, len, place })
}

/// Whether `len` bytes from `at` lie inside the block.
fn fits(blocks: &[BlockEntry], block: u32, at: u32, len: u64) -> bool {
    let room = blocks.get(block as usize).and_then(|block| block.raw_len.checked_sub(at));
    room.is_some_and(|room| len <= u64::from(room))
}

/// Runs are sorted by object and offset, and none reaches into the next.
fn check_order(runs: &[Run]) -> Result<()> {
    let wrong = |pair: &[Run]| pair[0].object > pair[1].object || overlap(pair);
    match runs.windows(2).position(wrong) {
        None => Ok(()),
        Some(number) => Err(damaged(format!("runs {number} and {} overlap or are out of order", number + 1))),
    }
}

/// A frame that builds upon none has nobody to hold its bytes.
fn check_parent(runs: &[Run], parent: bool) -> Result<()> {
    match runs.iter().position(|run| matches!(run.place, Place::Parent { .. })) {
        Some(number) if !parent => Err(damaged(format!("run {number} is held by a parent, and the frame has none"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(object: u32, offset: u64, len: u64, place: Place) -> Run {
        Run { object, offset, len, place }
    }

    fn index() -> Index {
        let blocks = vec![BlockEntry { raw_len: 8192, stored_len: 100, crc: 9 }; 2];
        let runs = vec![
            run(1, 0, 8192, Place::Data { block: 0, at: 0 }),
            run(1, 8192, 5, Place::Data { block: 1, at: 0 }),
            run(2, 0, 1 << 40, Place::Zero),
            run(2, 1 << 40, 4096, Place::Parent { object: 7 }),
        ];
        Index { blocks, runs }
    }

    const OFFSET: u64 = HEADER_LEN as u64 + 2 * 120;

    fn decode(bytes: &[u8]) -> Result<Index> {
        Index::decode(bytes, OFFSET, true)
    }

    #[test]
    fn index_survives_the_round_trip() {
        assert_eq!(decode(&index().encode()).unwrap(), index());
    }

    #[test]
    fn only_what_is_one_stretch_here_and_there_is_joined() {
        let data = |offset, at| run(1, offset, 4, Place::Data { block: 0, at });
        let held = |offset, object| run(1, offset, 4, Place::Parent { object });
        let zero = |object, offset| run(object, offset, 4, Place::Zero);
        let apart = [(data(0, 0), data(4, 8)), (data(0, 0), data(8, 4)), (zero(1, 0), zero(2, 4)), (held(0, 1), held(4, 2)), (zero(1, 0), held(4, 1))];
        for (mut first, next) in apart {
            assert!(!join(&mut first, &next), "{first:?} {next:?}");
            assert_eq!(first.len, 4);
        }
        for (mut first, next) in [(data(0, 0), data(4, 4)), (zero(1, 0), zero(1, 4)), (held(0, 1), held(4, 1))] {
            assert!(join(&mut first, &next), "{first:?} {next:?}");
            assert_eq!(first.len, 8);
        }
    }

    #[test]
    fn inconsistent_indexes_are_refused() {
        type Spoil = fn(&mut Index);
        let spoil: [(Spoil, &str); 9] = [
            (|i| i.blocks[1].stored_len = 99, "should end"),
            (|i| i.blocks[1].stored_len = 0, "block 1"),
            (|i| i.blocks[0].raw_len = BLOCK_MAX as u32 + 1, "block 0"),
            (|i| i.blocks[0].raw_len = 99, "block 0"),
            (|i| i.runs[0].len = 8193, "out of bounds"),
            (|i| i.runs[0].place = Place::Data { block: 2, at: 0 }, "out of bounds"),
            (|i| i.runs[2].len = 0, "out of bounds"),
            (|i| i.runs[2].offset = u64::MAX, "out of bounds"),
            (|i| i.runs[2].len += 1, "overlap"),
        ];
        for (spoil, words) in spoil {
            let mut index = index();
            spoil(&mut index);
            let error = decode(&index.encode()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn counts_are_not_believed() {
        let good = index().encode();
        for at in 0..PREAMBLE_LEN {
            let mut bytes = good.clone();
            bytes[at] = 0xff;
            assert!(decode(&bytes).is_err());
        }
        assert!(decode(&good[..10]).is_err());
    }

    #[test]
    fn runs_held_by_a_parent_need_one_and_unknown_kinds_are_refused() {
        let good = index().encode();
        assert!(Index::decode(&good, OFFSET, false).unwrap_err().to_string().contains("run 3 is held by a parent"));
        let last = PREAMBLE_LEN + 2 * BLOCK_ENTRY_LEN + 3 * RUN_ENTRY_LEN;
        for (at, words) in [(run_at::AT, "out of bounds"), (run_at::KIND, "kind 77")] {
            let mut bytes = good.clone();
            bytes[last + at] = 77;
            assert!(decode(&bytes).unwrap_err().to_string().contains(words));
        }
    }
}
