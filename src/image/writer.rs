//! Writes a frame from front to back, in one pass.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::codec::{encode, Compression, EncodedBlock, BLOCK_MAX};
use super::footer::{Footer, FOOTER_LEN};
use super::header::{FrameId, Header};
use super::index::Index;
use super::section::Section;
use super::{Place, Run};
use crate::error::{Error, Kind, Result};

/// Small blocks are gathered, large ones pass straight through.
const BUFFER: usize = 256 << 10;

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
}

/// A frame whose last byte is written, though not yet on stable storage.
#[derive(Debug)]
pub struct Written {
    /// The file, still to be synced.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    /// Bytes of objects that it holds, before compression.
    pub data_bytes: u64,
    /// Bytes of objects that are zero and take no room.
    pub zero_bytes: u64,
    /// Blocks that hold the data.
    pub blocks: u64,
}

/// A frame being written; a file it leaves behind unfinished is refused by every reader.
#[derive(Debug)]
pub struct FrameWriter {
    out: BufWriter<File>,
    path: PathBuf,
    id: FrameId,
    index: Index,
    position: u64,
}

impl FrameWriter {
    /// Starts a frame in an empty file; `path` is for messages only.
    pub fn create(file: File, path: &Path, header: &Header) -> Result<Self> {
        let mut writer = FrameWriter {
            out: BufWriter::with_capacity(BUFFER, file),
            path: path.to_owned(),
            id: header.id,
            index: Index::default(),
            position: 0,
        };
        writer.write(&header.encode())?;
        Ok(writer)
    }

    /// Adds a block and says which bytes of which objects it holds.
    pub fn append(&mut self, block: &EncodedBlock, runs: &[RunInBlock]) -> Result<()> {
        let number = u32::try_from(self.index.blocks.len())
            .map_err(|_| Error::refused(format!("{}: a frame cannot hold more blocks", self.path.display())))?;
        if let Some(run) = runs.iter().find(|run| !inside(run, block.entry.raw_len)) {
            return Err(outside(run.object, run.offset, u64::from(run.len)));
        }
        self.write(&block.bytes)?;
        self.index.blocks.push(block.entry);
        self.index.runs.extend(runs.iter().map(|run| Run {
            object: run.object,
            offset: run.offset,
            len: u64::from(run.len),
            place: Place::Data { block: number, at: run.at },
        }));
        Ok(())
    }

    /// Says that bytes of an object are zero.
    pub fn zero(&mut self, object: u32, offset: u64, len: u64) -> Result<()> {
        if len == 0 || offset.checked_add(len).is_none() {
            return Err(outside(object, offset, len));
        }
        self.index.runs.push(Run { object, offset, len, place: Place::Zero });
        Ok(())
    }

    /// Compresses and adds bytes of one object on the spot; for what is too small to be worth a thread.
    pub fn put(&mut self, object: u32, offset: u64, data: &[u8], compression: Compression) -> Result<()> {
        for (number, raw) in data.chunks(BLOCK_MAX).enumerate() {
            let offset = offset.saturating_add((number * BLOCK_MAX) as u64);
            let run = RunInBlock { object, offset, at: 0, len: raw.len() as u32 };
            self.append(&encode(raw, compression)?, &[run])?;
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes index, manifest and footer; syncing the file is left to the caller, who does it once.
    pub fn finish(mut self, manifest: &[u8]) -> Result<Written> {
        self.index.normalize()?;
        let (index, stored) = Section::pack(&self.index.encode(), self.position)?;
        self.write(&stored)?;
        let (manifest, stored) = Section::pack(manifest, self.position)?;
        self.write(&stored)?;
        let file_len = self.position + FOOTER_LEN as u64;
        self.write(&Footer { index, manifest, file_len, id: self.id }.encode())?;
        let (blocks, data_bytes, zero_bytes) = self.totals();
        let path = self.path;
        let file = self.out.into_inner().map_err(|e| failed(&path, e.into_error()))?;
        Ok(Written { file, bytes: file_len, data_bytes, zero_bytes, blocks })
    }

    fn totals(&self) -> (u64, u64, u64) {
        let sum = |zero| {
            let runs = self.index.runs.iter().filter(|run| (run.place == Place::Zero) == zero);
            // Runs do not overlap but objects do: sixteen exabytes of zero are a lot of objects, not an error.
            runs.fold(0u64, |sum, run| sum.saturating_add(run.len))
        };
        (self.index.blocks.len() as u64, sum(false), sum(true))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| failed(&self.path, e))?;
        self.position += bytes.len() as u64;
        Ok(())
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
