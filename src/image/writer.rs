//! Writes a frame from front to back, in one pass.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::codec::{encode, Compression, EncodedBlock, Head, BLOCK_HEADER_LEN, BLOCK_MAX};
use super::footer::{Footer, FOOTER_LEN};
use super::header::{FrameId, Header};
use super::index::{BlockEntry, Index};
use super::overlay::{Layers, Rank};
use super::section::Section;
use super::sink::Sink;
use super::{Place, Run};
use crate::error::{Error, Kind, Result};

/// A stretch of an object that lies in the block it is handed in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunInBlock {
    /// Which object the bytes belong to.
    pub object: u32,
    /// Where in the object they start.
    pub offset: u64,
    /// Where in the raw content of the block they start.
    pub at: u32,
    /// How many there are.
    pub len: u32,
    /// Where runs of one object overlap, the one of the latest generation counts; the file does not keep it.
    pub generation: u32,
}

/// A frame whose last byte is written, though not yet on stable storage.
#[derive(Debug)]
pub struct Written {
    /// The file, still to be synced.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    /// The frame it builds upon.
    pub parent: Option<FrameId>,
    /// Bytes of objects that it holds, before compression.
    pub data_bytes: u64,
    /// Bytes of objects that are zero and take no room.
    pub zero_bytes: u64,
    /// Bytes of objects that are as the parent has them, if it has them.
    pub parent_bytes: u64,
    /// Blocks in the file.
    pub blocks: u64,
    /// Bytes of the file in blocks of which nothing is left to be seen: all they hold was written again later, or cut off.
    pub dead_bytes: u64,
}

/// A frame being written; a file it leaves behind unfinished is refused by every reader.
#[derive(Debug)]
pub struct FrameWriter {
    out: Sink,
    path: PathBuf,
    id: FrameId,
    parent: Option<FrameId>,
    blocks: Vec<BlockEntry>,
    layers: Layers,
    position: u64,
}

impl FrameWriter {
    /// Starts a frame in an empty file; `path` is for messages only.
    pub fn create(file: File, path: &Path, header: &Header) -> Result<Self> {
        let mut writer = FrameWriter {
            out: Sink::new(file),
            path: path.to_owned(),
            id: header.id,
            parent: header.parent,
            blocks: Vec::new(),
            layers: Layers::default(),
            position: 0,
        };
        writer.write(&header.encode())?;
        Ok(writer)
    }

    /// Adds a block and says which bytes of which objects it holds.
    pub fn append(&mut self, block: &EncodedBlock, runs: &[RunInBlock]) -> Result<()> {
        let (header, stored) = block.bytes.split_at(BLOCK_HEADER_LEN);
        self.add(header, stored, block.entry, runs)
    }

    /// The same for a block whose stored bytes lie apart from its header.
    pub fn append_parts(&mut self, head: &Head, stored: &[u8], runs: &[RunInBlock]) -> Result<()> {
        if stored.len() != head.entry.stored_len as usize {
            let what = format!("a block was said to take {} bytes and takes {}; hand in what was checksummed", head.entry.stored_len, stored.len());
            return Err(Error::new(Kind::Usage, what));
        }
        self.add(&head.bytes, stored, head.entry, runs)
    }

    fn add(&mut self, header: &[u8], stored: &[u8], entry: BlockEntry, runs: &[RunInBlock]) -> Result<()> {
        let number = u32::try_from(self.blocks.len())
            .map_err(|_| Error::refused(format!("{}: a frame cannot hold more blocks", self.path.display())))?;
        if let Some(run) = runs.iter().find(|run| !inside(run, entry.raw_len)) {
            return Err(outside(run.object, run.offset, u64::from(run.len)));
        }
        self.write(header)?;
        self.write(stored)?;
        self.blocks.push(entry);
        for run in runs {
            let place = Place::Data { block: number, at: run.at };
            let whole = Run { object: run.object, offset: run.offset, len: u64::from(run.len), place };
            self.layers.add(whole, Some(run.generation));
        }
        Ok(())
    }

    /// Says that bytes of an object are zero.
    pub fn zero(&mut self, object: u32, offset: u64, len: u64, generation: u32) -> Result<()> {
        self.claim(Run { object, offset, len, place: Place::Zero }, Some(generation))
    }

    /// Says that bytes of an object are what the parent frame has at the same offset of its object `parent_object`: data, zero,
    /// or nothing at all. Data and zeros of whatever generation lie over them.
    pub fn parent(&mut self, object: u32, offset: u64, len: u64, parent_object: u32) -> Result<()> {
        if self.parent.is_none() {
            let what = format!("object {object} cannot be held by a parent, the frame has none; name one in its header");
            return Err(Error::new(Kind::Usage, what));
        }
        self.claim(Run { object, offset, len, place: Place::Parent { object: parent_object } }, None)
    }

    fn claim(&mut self, run: Run, rank: Rank) -> Result<()> {
        if run.len == 0 || run.offset.checked_add(run.len).is_none() {
            return Err(outside(run.object, run.offset, run.len));
        }
        self.layers.add(run, rank);
        Ok(())
    }

    /// Cuts an object to size: of all that was or will be said of it, only what lies in `live` goes into the frame. The ranges,
    /// from start to end, are sorted, disjoint and not empty; without any, the object is dropped. Once an object.
    pub fn clip(&mut self, object: u32, live: &[(u64, u64)]) -> Result<()> {
        self.layers.clip(object, live)
    }

    /// Compresses and adds bytes of one object on the spot, as generation 0; for what is too small to be worth a thread.
    pub fn put(&mut self, object: u32, offset: u64, data: &[u8], compression: Compression) -> Result<()> {
        for (number, raw) in data.chunks(BLOCK_MAX).enumerate() {
            let offset = offset.saturating_add((number * BLOCK_MAX) as u64);
            let run = RunInBlock { object, offset, at: 0, len: raw.len() as u32, generation: 0 };
            self.append(&encode(raw, compression)?, &[run])?;
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Waits until what was added is in the file, but for less than what one write takes (4 MiB).
    pub fn drain(&mut self) -> Result<()> {
        self.out.drain().map_err(|e| failed(&self.path, e))
    }

    /// Bytes a second that the file has taken while it was kept busy; nothing before the first write.
    pub fn speed(&self) -> Option<f64> {
        self.out.speed()
    }

    /// Writes in pieces of about `len` bytes from now on (4 KiB to 4 MiB), for a file that is to be written slowly.
    pub fn set_piece(&mut self, len: usize) {
        self.out.set_piece(len);
    }

    /// Writes index, manifest and footer; syncing the file is left to the caller, who does it once.
    pub fn finish(mut self, manifest: &[u8]) -> Result<Written> {
        let index = Index { blocks: std::mem::take(&mut self.blocks), runs: std::mem::take(&mut self.layers).flatten()? };
        let totals = Totals::of(&index);
        let (index, stored) = Section::pack(&index.encode(), self.position)?;
        self.write(&stored)?;
        let (manifest, stored) = Section::pack(manifest, self.position)?;
        self.write(&stored)?;
        let file_len = self.position + FOOTER_LEN as u64;
        self.write(&Footer { index, manifest, file_len, id: self.id }.encode())?;
        let path = self.path;
        let file = self.out.finish().map_err(|e| failed(&path, e))?;
        let Totals { data, zero, parent, blocks, dead } = totals;
        Ok(Written { file, bytes: file_len, parent: self.parent, data_bytes: data, zero_bytes: zero, parent_bytes: parent, blocks, dead_bytes: dead })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write(bytes).map_err(|e| failed(&self.path, e))?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

/// What an index amounts to, in bytes and blocks.
#[derive(Default)]
struct Totals {
    data: u64,
    zero: u64,
    parent: u64,
    blocks: u64,
    dead: u64,
}

impl Totals {
    fn of(index: &Index) -> Totals {
        let mut totals = Totals { blocks: index.blocks.len() as u64, ..Totals::default() };
        let mut seen = vec![false; index.blocks.len()];
        for run in &index.runs {
            let sum = match run.place {
                Place::Data { block, .. } => {
                    seen[block as usize] = true;
                    &mut totals.data
                }
                Place::Zero => &mut totals.zero,
                Place::Parent { .. } => &mut totals.parent,
            };
            // Runs do not overlap but objects do: sixteen exabytes of zero are a lot of objects, not an error.
            *sum = sum.saturating_add(run.len);
        }
        totals.dead = index.blocks.iter().zip(seen).filter(|(_, seen)| !seen).map(|(block, _)| block.file_len()).sum();
        totals
    }
}

fn inside(run: &RunInBlock, raw_len: u32) -> bool {
    let in_block = run.at.checked_add(run.len).is_some_and(|end| end <= raw_len);
    in_block && run.len > 0 && run.offset.checked_add(u64::from(run.len)).is_some()
}

fn outside(object: u32, offset: u64, len: u64) -> Error {
    let what = format!("object {object} has no room for {len} bytes at {offset:#x}; give a run inside its block");
    Error::new(Kind::Usage, what)
}

fn failed(path: &Path, e: std::io::Error) -> Error {
    let advice = match e.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => " (free some space there or name another store)",
        _ => "",
    };
    Error::io(format!("cannot write frame {}{advice}", path.display()), e)
}
