//! A frame together with all that it builds upon, read as one.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::block::{Block, Early};
use super::family::Family;
use super::header::Header;
use super::index::BlockEntry;
use super::reader::{FrameReader, Verified};
use super::{damaged, Place, Run};
use crate::error::{Error, Kind, Result};

/// An open frame with its parent, that one's parent and so on; any number of threads may read its blocks at once.
#[derive(Debug)]
pub struct Chain {
    /// The newest first; the last one builds upon none.
    frames: Vec<FrameReader>,
    /// All that the newest holds, sorted by object and offset.
    pieces: Vec<Piece>,
}

/// A stretch of bytes of one object of the newest frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which object of the newest frame the bytes belong to.
    pub object: u32,
    /// Where in the object they start.
    pub offset: u64,
    /// How many there are; never zero.
    pub len: u64,
    /// Where they come from.
    pub source: Source,
}

impl Piece {
    /// Offset behind the last byte.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// The part from offset `start` to offset `end`, which the caller knows to lie inside.
    pub fn part(&self, start: u64, end: u64) -> Piece {
        let source = match self.source {
            // The piece lies inside one block, so that what is skipped is less than BLOCK_MAX.
            Source::Data { block, at } => Source::Data { block, at: at + (start - self.offset) as u32 },
            Source::Zero => Source::Zero,
        };
        Piece { object: self.object, offset: start, len: end - start, source }
    }
}

/// Where the bytes of a piece come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From byte `at` of the raw content of a block.
    Data {
        /// Which block of the chain.
        block: BlockId,
        /// Offset into its raw content.
        at: u32,
    },
    /// They are zero.
    Zero,
}

/// One block of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId {
    /// Number of the frame that holds it, counted from 0 for the newest.
    pub frame: u32,
    /// Number of the block in that frame, counted from 0.
    pub block: u32,
}

impl Chain {
    /// Opens a frame and, from the same directory, all that it builds upon; checks everything but the content of blocks.
    pub fn open(path: &Path) -> Result<Chain> {
        // Between two of our steps a link may be compacted, and what lay below it removed: the second look sees the new order.
        let frames = links(path).or_else(|_| links(path))?;
        let pieces = flatten(&frames);
        Ok(Chain { frames, pieces })
    }

    /// The frames, the newest first.
    pub fn frames(&self) -> &[FrameReader] {
        &self.frames
    }

    /// The frame that was asked for.
    pub fn newest(&self) -> &FrameReader {
        &self.frames[0]
    }

    /// What the first bytes of the newest frame say.
    pub fn header(&self) -> &Header {
        self.newest().header()
    }

    /// The manifest of the newest frame.
    pub fn manifest(&self) -> &[u8] {
        self.newest().manifest()
    }

    /// Where the newest frame lies.
    pub fn path(&self) -> &Path {
        self.newest().path()
    }

    /// Length of all files together.
    pub fn bytes(&self) -> u64 {
        self.frames.iter().map(FrameReader::bytes).sum()
    }

    /// The numbers of all objects that have bytes, ascending.
    pub fn objects(&self) -> impl Iterator<Item = u32> + '_ {
        self.pieces.chunk_by(|a, b| a.object == b.object).map(|pieces| pieces[0].object)
    }

    /// All pieces, sorted by object and offset; none overlap.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The pieces of one object, sorted by offset; none if there is no such object.
    pub fn runs(&self, object: u32) -> &[Piece] {
        let start = self.pieces.partition_point(|piece| piece.object < object);
        let len = self.pieces[start..].partition_point(|piece| piece.object == object);
        &self.pieces[start..start + len]
    }

    /// Reads a block into `buffer`, checked and decompressed.
    pub fn read_block(&self, block: BlockId, buffer: &mut Block) -> Result<()> {
        self.frame(block)?.read_block(block.block, buffer)
    }

    /// The same for a caller who can take back what he has done: hands `early` the raw bytes piece by piece (their offset in the
    /// block, the bytes), while they are in the processor's cache, and some before all of the block is checked. Nothing of it
    /// stays in `buffer`.
    pub fn pass_block(&self, block: BlockId, buffer: &mut Block, early: &mut Early<'_>) -> Result<()> {
        self.frame(block)?.pass_block(block.block, buffer, early)
    }

    fn frame(&self, block: BlockId) -> Result<&FrameReader> {
        let none = || Error::new(Kind::Usage, format!("frame {} builds upon less than {} others", self.path().display(), block.frame));
        self.frames.get(block.frame as usize).ok_or_else(none)
    }

    /// Fills `buf` with the bytes of an object from `offset`; every one of them must be in the frame.
    pub fn read_at(&self, object: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        let pieces = self.runs(object);
        let first = pieces.partition_point(|piece| piece.end() <= offset);
        let mut done = 0;
        for piece in &pieces[first..] {
            let here = offset.saturating_add(done as u64);
            if done == buf.len() || piece.offset > here {
                break;
            }
            let skip = here - piece.offset;
            let len = (piece.len - skip).min((buf.len() - done) as u64) as usize;
            self.copy(piece, skip as usize, &mut buf[done..done + len])?;
            done += len;
        }
        match done == buf.len() {
            true => Ok(()),
            false => Err(self.newest().missing(object, offset.saturating_add(done as u64))),
        }
    }

    /// Fills `buf` with bytes of one piece, leaving out the first `skip`.
    fn copy(&self, piece: &Piece, skip: usize, buf: &mut [u8]) -> Result<()> {
        let Source::Data { block, at } = piece.source else {
            buf.fill(0);
            return Ok(());
        };
        let mut buffer = Block::default();
        self.read_block(block, &mut buffer)?;
        // The index was checked against the block's length, and the block has that length.
        let start = at as usize + skip;
        buf.copy_from_slice(&buffer.raw()[start..start + buf.len()]);
        Ok(())
    }

    /// Reads every block of every frame; with what `open` checked, that is every byte of all files.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified> {
        Verifier::default().verify(self, progress)
    }
}

/// Opens the frame at `path` and all that it builds upon, the newest first.
fn links(path: &Path) -> Result<Vec<FrameReader>> {
    let mut frames = vec![FrameReader::open(path)?];
    let mut ids = HashSet::from([frames[0].header().id]);
    let mut family = None;
    while let Some(parent) = frames[frames.len() - 1].header().parent {
        let child = &frames[frames.len() - 1];
        let family = match &mut family {
            Some(family) => family,
            none => none.insert(Family::beside(path)?),
        };
        let found = family.find(parent).map_err(|e| link_failed(child, e))?.ok_or_else(|| {
            let what = format!("frame {} builds upon frame {parent}, which is not in {}", child.path().display(), family.searched());
            Error::corrupt(format!("{what}; put the file of that frame back there, or use an older frame"))
        })?;
        let frame = FrameReader::open(&found).map_err(|e| link_failed(child, e))?;
        let header = frame.header();
        if header.id != parent || header.arch != child.header().arch {
            let what = format!("{} is not the frame of the same machine that it was taken for", found.display());
            return Err(link_failed(child, damaged(what)));
        }
        if !ids.insert(header.id) {
            return Err(link_failed(child, damaged(format!("{} builds upon itself in the end", found.display()))));
        }
        frames.push(frame);
    }
    Ok(frames)
}

fn link_failed(child: &FrameReader, e: Error) -> Error {
    let remedy = match e.errno() {
        Some(libc::EMFILE) => ", with more others than files may be open (raise ulimit -n, then compact it)",
        _ => "",
    };
    e.context(format_args!("frame {} builds upon another{remedy}", child.path().display()))
}

/// Bytes of an object of the newest frame of which it is not known yet where they come from.
struct Sought {
    object: u32,
    start: u64,
    end: u64,
    /// Their object in the frame that is to be asked next.
    theirs: u32,
}

/// Goes down the chain, and down again only for what a parent is said to hold.
fn flatten(frames: &[FrameReader]) -> Vec<Piece> {
    let whole = |object| Sought { object, start: 0, end: u64::MAX, theirs: object };
    let mut sought: Vec<Sought> = frames[0].objects().map(whole).collect();
    let mut pieces = Vec::with_capacity(frames[0].run_count());
    for (number, frame) in (0..).zip(frames) {
        let mut deeper = Vec::new();
        let mut cursor = Cursor { object: 0, start: 0, ahead: frame.runs_of(0) };
        for Sought { object, start, end, theirs } in sought {
            for run in cursor.seek(frame, theirs, start).iter().take_while(|run| run.offset < end) {
                let part = run.part(run.offset.max(start), run.end().min(end));
                let source = match part.place {
                    Place::Data { block, at } => Source::Data { block: BlockId { frame: number, block }, at },
                    Place::Zero => Source::Zero,
                    Place::Parent { object: theirs } => {
                        deeper.push(Sought { object, start: part.offset, end: part.end(), theirs });
                        continue;
                    }
                };
                pieces.push(Piece { object, offset: part.offset, len: part.len, source });
            }
        }
        sought = deeper;
    }
    // Each frame's are sorted already, which a stable sort makes use of.
    pieces.sort_by_key(|piece| (piece.object, piece.offset));
    pieces.dedup_by(|next, piece| join(piece, next));
    pieces
}

/// Where the last search in a frame ended: what is sought is mostly sorted, and found in one sweep.
struct Cursor<'a> {
    object: u32,
    start: u64,
    ahead: &'a [Run],
}

impl<'a> Cursor<'a> {
    /// The runs of an object from the one that reaches beyond `start`.
    fn seek(&mut self, frame: &'a FrameReader, object: u32, start: u64) -> &'a [Run] {
        if self.object != object || start < self.start {
            self.ahead = frame.runs_of(object);
            self.ahead = &self.ahead[self.ahead.partition_point(|run| run.end() <= start)..];
        }
        (self.object, self.start) = (object, start);
        while self.ahead.first().is_some_and(|run| run.end() <= start) {
            self.ahead = &self.ahead[1..];
        }
        self.ahead
    }
}

/// Makes `piece` swallow `next` where both are one stretch in the object and in the chain.
fn join(piece: &mut Piece, next: &Piece) -> bool {
    let adjacent = piece.object == next.object && piece.end() == next.offset;
    let together = match (piece.source, next.source) {
        (Source::Zero, Source::Zero) => true,
        (Source::Data { block, at }, Source::Data { block: other, at: next_at }) => {
            block == other && u64::from(at) + piece.len == u64::from(next_at)
        }
        _ => false,
    };
    if adjacent && together {
        piece.len += next.len;
    }
    adjacent && together
}

/// Verdicts on files, so that each is read once, however many chains it is part of.
#[derive(Debug, Default)]
pub struct Verifier {
    verdicts: HashMap<PathBuf, std::result::Result<Verified, (Kind, String)>>,
}

impl Verifier {
    /// Reads every block of every frame of a chain that was not read before.
    pub fn verify(&mut self, chain: &Chain, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified> {
        let fresh = chain.frames.iter().filter(|frame| !self.verdicts.contains_key(frame.path()));
        let total = fresh.map(|frame| frame.blocks().iter().map(BlockEntry::file_len).sum::<u64>()).sum();
        let mut sum = Verified::default();
        let mut before = 0;
        progress(0, total);
        for frame in &chain.frames {
            let verdict = self.verdicts.entry(frame.path().to_owned()).or_insert_with(|| {
                let mut own = 0;
                let verdict = frame.verify(&mut |done, _| {
                    own = done;
                    progress(before + done, total);
                });
                before += own;
                verdict.map_err(|e| (e.kind(), e.to_string()))
            });
            sum += verdict.as_ref().map_err(|(kind, text)| Error::new(*kind, text.clone()))?;
        }
        Ok(sum)
    }
}
