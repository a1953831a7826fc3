//! Reads frames, and believes nothing that a checksum or a bound does not confirm.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::block::{Block, Early};
use super::codec::EncodedBlock;
use super::footer::{Footer, FOOTER_LEN};
use super::header::{Header, HEADER_LEN};
use super::index::{BlockEntry, Index};
use super::section::Section;
use super::{damaged, Place, Run};
use crate::error::{Context, Error, Kind, Result};

/// One open frame file, without those it may build upon; any number of threads may read its blocks at once.
#[derive(Debug)]
pub struct FrameReader {
    file: File,
    path: PathBuf,
    bytes: u64,
    header: Header,
    index: Index,
    /// Where each block starts in the file.
    starts: Vec<u64>,
    manifest: Vec<u8>,
}

/// What a verification went through.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Frames, of which one builds upon the next.
    pub frames: u64,
    /// Blocks read.
    pub blocks: u64,
    /// Bytes they hold.
    pub data_bytes: u64,
    /// Length of their files, all of it checked.
    pub bytes: u64,
}

impl std::ops::AddAssign<&Verified> for Verified {
    fn add_assign(&mut self, other: &Verified) {
        self.frames += other.frames;
        self.blocks += other.blocks;
        self.data_bytes += other.data_bytes;
        self.bytes += other.bytes;
    }
}

impl FrameReader {
    /// Opens a frame and checks everything but the content of its blocks.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let bytes = file.metadata().at("examine", path)?.len();
        Self::load(file, path, bytes).map_err(|e| e.context(format_args!("frame {}", path.display())))
    }

    fn load(file: File, path: &Path, bytes: u64) -> Result<Self> {
        let header = Header::decode(&fixed::<HEADER_LEN>(&file, 0)?)?;
        let footer_at = bytes.checked_sub(FOOTER_LEN as u64).filter(|&at| at >= HEADER_LEN as u64);
        let footer_at = footer_at.ok_or_else(|| damaged(format!("it is cut off at offset {bytes}")))?;
        let footer = Footer::decode(&fixed::<FOOTER_LEN>(&file, footer_at)?, bytes)
            .map_err(|e| e.context(format_args!("footer at offset {footer_at}")))?;
        if footer.id != header.id {
            return Err(damaged("header and footer are of two different frames"));
        }
        let index = section(&file, "index", &footer.index, |raw| Index::decode(&raw, footer.index.offset, header.parent.is_some()))?;
        let manifest = section(&file, "manifest", &footer.manifest, Ok)?;
        let starts = starts(&index.blocks);
        Ok(FrameReader { file, path: path.to_owned(), bytes, header, index, starts, manifest })
    }

    /// What the first bytes say.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The manifest, as it was handed to the writer.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// Where the frame lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The numbers of all objects that have bytes, ascending.
    pub fn objects(&self) -> impl Iterator<Item = u32> + '_ {
        self.index.runs.chunk_by(|a, b| a.object == b.object).map(|runs| runs[0].object)
    }

    /// The runs of one object, sorted by offset; none if there is no such object.
    pub fn runs(&self, object: u32) -> std::slice::Iter<'_, Run> {
        self.runs_of(object).iter()
    }

    /// How many runs all objects have together.
    pub(super) fn run_count(&self) -> usize {
        self.index.runs.len()
    }

    pub(super) fn runs_of(&self, object: u32) -> &[Run] {
        let runs = &self.index.runs;
        let start = runs.partition_point(|run| run.object < object);
        let len = runs[start..].partition_point(|run| run.object == object);
        &runs[start..start + len]
    }

    /// The blocks in the order they lie in the file.
    pub fn blocks(&self) -> &[BlockEntry] {
        &self.index.blocks
    }

    /// Reads a block into `buffer`, checked and decompressed.
    pub fn read_block(&self, block: u32, buffer: &mut Block) -> Result<()> {
        self.load_block(block, buffer, None)
    }

    /// The same for a caller who can take back what he has done: hands `early` the raw bytes piece by piece, some before all of
    /// the block is checked.
    pub(super) fn pass_block(&self, block: u32, buffer: &mut Block, early: &mut Early<'_>) -> Result<()> {
        self.load_block(block, buffer, Some(early))
    }

    fn load_block(&self, block: u32, buffer: &mut Block, early: Option<&mut Early<'_>>) -> Result<()> {
        self.with_block(block, |entry, start| buffer.load(entry, |at, bytes| exact(&self.file, start + at, bytes), early))
    }

    /// A block as it lies in the file, its checksum checked.
    pub(super) fn stored_block(&self, block: u32) -> Result<EncodedBlock> {
        self.with_block(block, |entry, start| EncodedBlock::checked(read(&self.file, start, entry.file_len())?, entry))
    }

    fn with_block<T>(&self, block: u32, read: impl FnOnce(&BlockEntry, u64) -> Result<T>) -> Result<T> {
        let at = (self.index.blocks.get(block as usize), self.starts.get(block as usize));
        let (Some(entry), Some(&start)) = at else {
            let what = format!("frame {} has no block {block}", self.path.display());
            return Err(Error::new(Kind::Usage, what));
        };
        read(entry, start).map_err(|e| e.context(format_args!("frame {}: block {block} at offset {start}", self.path.display())))
    }

    /// Fills `buf` with the bytes of an object from `offset`; every one of them must be in this very frame.
    pub fn read_at(&self, object: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        let runs = self.runs_of(object);
        let first = runs.partition_point(|run| run.end() <= offset);
        let mut done = 0;
        for run in &runs[first..] {
            let here = offset.saturating_add(done as u64);
            if done == buf.len() || run.offset > here {
                break;
            }
            let skip = here - run.offset;
            let len = (run.len - skip).min((buf.len() - done) as u64) as usize;
            self.copy(run, skip as usize, &mut buf[done..done + len])?;
            done += len;
        }
        match done == buf.len() {
            true => Ok(()),
            false => Err(self.missing(object, offset.saturating_add(done as u64))),
        }
    }

    /// Fills `buf` with bytes of one run, leaving out the first `skip`.
    fn copy(&self, run: &Run, skip: usize, buf: &mut [u8]) -> Result<()> {
        let (block, at) = match run.place {
            Place::Data { block, at } => (block, at),
            Place::Zero => {
                buf.fill(0);
                return Ok(());
            }
            Place::Parent { .. } => return Err(self.held_elsewhere(run)),
        };
        let mut buffer = Block::default();
        self.read_block(block, &mut buffer)?;
        // The index was checked against the block's length, and the block has that length.
        let start = at as usize + skip;
        buf.copy_from_slice(&buffer.raw()[start..start + buf.len()]);
        Ok(())
    }

    fn held_elsewhere(&self, run: &Run) -> Error {
        let what = format!("frame {}: its parent holds the bytes of object {} at {:#x}", self.path.display(), run.object, run.offset);
        Error::new(Kind::Usage, format!("{what}; read it together with its parent"))
    }

    pub(super) fn missing(&self, object: u32, offset: u64) -> Error {
        let path = self.path.display();
        Error::new(Kind::NotFound, format!("frame {path}: object {object} has no bytes at {offset:#x}; ask for less"))
    }

    /// Reads every block; with what `open` checked, that is every byte of the file.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified> {
        let total = self.index.blocks.iter().map(BlockEntry::file_len).sum();
        let (mut done, mut data_bytes, mut buffer) = (0, 0, Block::default());
        progress(0, total);
        for (number, entry) in (0..).zip(&self.index.blocks) {
            self.read_block(number, &mut buffer)?;
            done += entry.file_len();
            data_bytes += buffer.raw().len() as u64;
            progress(done, total);
        }
        Ok(Verified { frames: 1, blocks: self.index.blocks.len() as u64, data_bytes, bytes: self.bytes })
    }
}

/// Reads the header of a frame, and nothing else of it.
pub fn read_header(path: &Path) -> Result<Header> {
    let file = open_regular(path)?;
    fixed::<HEADER_LEN>(&file, 0).and_then(|bytes| Header::decode(&bytes)).map_err(|e| e.context(format_args!("frame {}", path.display())))
}

/// Opens a regular file only: a pipe would block, a directory would fail in stranger words.
fn open_regular(path: &Path) -> Result<File> {
    if !path.metadata().at("open frame", path)?.is_file() {
        let what = format!("{} is not a regular file; name a frame", path.display());
        return Err(Error::new(Kind::Usage, what));
    }
    File::open(path).at("open frame", path)
}

/// Reads, checks and decodes one section, and says which one failed.
fn section<T>(file: &File, name: &str, section: &Section, decode: impl Fn(Vec<u8>) -> Result<T>) -> Result<T> {
    read(file, section.offset, section.stored_len)
        .and_then(|stored| section.unpack(stored))
        .and_then(decode)
        .map_err(|e| e.context(format_args!("{name} at offset {}", section.offset)))
}

/// Reads `len` bytes, which the caller knows to lie inside the file.
fn read(file: &File, offset: u64, len: u64) -> Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| damaged("it is larger than memory"))?;
    let mut bytes = vec![0; len];
    exact(file, offset, &mut bytes)?;
    Ok(bytes)
}

fn fixed<const N: usize>(file: &File, offset: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    exact(file, offset, &mut bytes)?;
    Ok(bytes)
}

fn exact(file: &File, offset: u64, bytes: &mut [u8]) -> Result<()> {
    file.read_exact_at(bytes, offset).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            damaged(format!("the file ends before the {} bytes at offset {offset}", bytes.len()))
        }
        _ => Error::io(format!("cannot read {} bytes at offset {offset}", bytes.len()), e),
    })
}

fn starts(blocks: &[BlockEntry]) -> Vec<u64> {
    let mut next = HEADER_LEN as u64;
    let place = |block: &BlockEntry| {
        let start = next;
        next += block.file_len();
        start
    };
    blocks.iter().map(place).collect()
}
