//! The transfer: frozen pages and file contents → zero pages dropped → compressed → written, while the target runs.
//!
//! One thread reads, a few encode, the caller's writes. Queues are bounded, so memory stays at a few blocks a thread.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;

use crossbeam_channel::{bounded, Receiver, Sender};

use crate::error::{Context, Error, Kind, Result};
use crate::image::{encode, Compression, EncodedBlock, FrameWriter, RunInBlock, BLOCK_MAX};
use crate::proc::{self, Pid};
use crate::resource::contents::{data_ranges, Content};
use crate::resource::memory::{page_ranges, Mapping, Pages};
use crate::sys::PAGE;
use crate::tracee::memory::Memory;

/// The frozen memory of one address space.
#[derive(Debug)]
pub struct SpaceSource {
    /// Its object in the frame.
    pub object: u32,
    /// The stopped process to read it from.
    pub pid: Pid,
    /// The mappings whose private pages go into the frame.
    pub mappings: Vec<Mapping>,
}

/// What was streamed.
#[derive(Debug, Default)]
pub struct Totals {
    /// Pages of memory and blocks of files that hold data, in units of 4096 bytes.
    pub pages: u64,
    /// Pages that were looked at and are all zero.
    pub zero_pages: u64,
    /// Guard ranges (object, start, length) met on the way.
    pub guards: Vec<(u32, u64, u64)>,
}

/// Up to a block of bytes on their way, and where they belong: (object, offset, length).
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    pieces: Vec<(u32, u64, u32)>,
}

struct Encoded {
    block: Option<EncodedBlock>,
    runs: Vec<RunInBlock>,
    zeros: Vec<(u32, u64, u64)>,
}

const QUEUE: usize = 4;

/// Streams all of `spaces` and `contents` into `writer`.
pub fn stream(spaces: &[SpaceSource], contents: &[Content], compression: Compression, writer: &mut FrameWriter) -> Result<Totals> {
    let workers = thread::available_parallelism().map_or(2, usize::from).clamp(1, 8);
    thread::scope(|scope| {
        let (raw, raw_out) = bounded::<Chunk>(QUEUE);
        let (done, done_out) = bounded::<Result<Encoded>>(QUEUE);
        let reader = scope.spawn(move || read_all(spaces, contents, raw));
        for _ in 0..workers {
            let (raw_out, done) = (raw_out.clone(), done.clone());
            scope.spawn(move || encode_all(&raw_out, &done, compression));
        }
        drop((raw_out, done));
        let written = write_all(done_out, writer);
        // A dead writer closes its queue, and with it the whole line: the reader's own error is then only an echo.
        let read = reader.join().unwrap_or_else(|_| Err(Error::new(Kind::Io, "the reading thread failed")));
        let mut totals = written?;
        totals.guards = read?;
        Ok(totals)
    })
}

fn read_all(spaces: &[SpaceSource], contents: &[Content], out: Sender<Chunk>) -> Result<Vec<(u32, u64, u64)>> {
    let mut packer = Packer { out, chunk: Chunk::default() };
    let mut guards = Vec::new();
    for space in spaces {
        read_space(space, &mut packer, &mut guards)?;
    }
    for content in contents {
        read_content(content, &mut packer)?;
    }
    packer.flush()?;
    Ok(guards)
}

fn read_space(space: &SpaceSource, packer: &mut Packer, guards: &mut Vec<(u32, u64, u64)>) -> Result<()> {
    let memory = Memory::open(space.pid)?;
    let path = proc::path(space.pid, "pagemap");
    let pagemap = File::open(&path).at("open", &path)?;
    for mapping in &space.mappings {
        let Pages { data, guards: found } = page_ranges(&pagemap, mapping)?;
        guards.extend(found.into_iter().map(|(start, end)| (space.object, start, end - start)));
        for (start, end) in data {
            packer.add(space.object, start, end - start, |at, bytes| memory.read(at, bytes))?;
        }
    }
    Ok(())
}

fn read_content(content: &Content, packer: &mut Packer) -> Result<()> {
    for (start, len) in data_ranges(&content.file, content.len).context("cannot find the data of a saved file")? {
        packer.add(content.object, content.base + start, len, |at, bytes| {
            content.file.read_exact_at(bytes, at - content.base).context("cannot read the copy of a saved file")
        })?;
    }
    Ok(())
}

/// Packs pieces of any size into blocks.
struct Packer {
    out: Sender<Chunk>,
    chunk: Chunk,
}

impl Packer {
    fn add(&mut self, object: u32, mut offset: u64, mut len: u64, read: impl Fn(u64, &mut [u8]) -> Result<()>) -> Result<()> {
        while len > 0 {
            let room = BLOCK_MAX - self.chunk.bytes.len();
            let part = (room as u64).min(len);
            let at = self.chunk.bytes.len();
            self.chunk.bytes.resize(at + part as usize, 0);
            read(offset, &mut self.chunk.bytes[at..])?;
            self.chunk.pieces.push((object, offset, part as u32));
            (offset, len) = (offset + part, len - part);
            if self.chunk.bytes.len() == BLOCK_MAX {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.chunk.bytes.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.chunk.bytes.reserve_exact(BLOCK_MAX);
        self.out.send(chunk).map_err(|_| Error::new(Kind::Io, "the transfer was given up"))
    }
}

fn encode_all(chunks: &Receiver<Chunk>, out: &Sender<Result<Encoded>>, compression: Compression) {
    for chunk in chunks {
        if out.send(encode_chunk(chunk, compression)).is_err() {
            return;
        }
    }
}

/// Drops zero pages, moving what is left together, and compresses the rest.
fn encode_chunk(mut chunk: Chunk, compression: Compression) -> Result<Encoded> {
    let mut encoded = Encoded { block: None, runs: Vec::new(), zeros: Vec::new() };
    let (mut from, mut kept) = (0, 0);
    for &(object, offset, len) in &chunk.pieces {
        let mut done = 0;
        while done < len {
            let step = (PAGE as u32).min(len - done);
            let page = from..from + step as usize;
            let at = offset + u64::from(done);
            if is_zero(&chunk.bytes[page.clone()]) {
                encoded.zero(object, at, step);
            } else {
                chunk.bytes.copy_within(page, kept);
                encoded.data(object, at, kept as u32, step);
                kept += step as usize;
            }
            done += step;
            from += step as usize;
        }
    }
    if kept > 0 {
        encoded.block = Some(encode(&chunk.bytes[..kept], compression)?);
    }
    Ok(encoded)
}

impl Encoded {
    fn zero(&mut self, object: u32, offset: u64, len: u32) {
        match self.zeros.last_mut() {
            Some(last) if last.0 == object && last.1 + last.2 == offset => last.2 += u64::from(len),
            _ => self.zeros.push((object, offset, u64::from(len))),
        }
    }

    fn data(&mut self, object: u32, offset: u64, at: u32, len: u32) {
        match self.runs.last_mut() {
            Some(last) if last.object == object && last.offset + u64::from(last.len) == offset && last.at + last.len == at => last.len += len,
            _ => self.runs.push(RunInBlock { object, offset, at, len, generation: 0 }),
        }
    }
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages differ from zero early on.
    page.chunks(256).all(|part| part.iter().all(|&byte| byte == 0))
}

fn write_all(encoded: Receiver<Result<Encoded>>, writer: &mut FrameWriter) -> Result<Totals> {
    let mut totals = Totals::default();
    for encoded in encoded {
        let encoded = encoded?;
        if let Some(block) = &encoded.block {
            writer.append(block, &encoded.runs)?;
            totals.pages += (block.raw_len() as u64).div_ceil(PAGE);
        }
        for (object, offset, len) in encoded.zeros {
            writer.zero(object, offset, len, 0)?;
            totals.zero_pages += len.div_ceil(PAGE);
        }
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_are_dropped_and_neighbours_joined() {
        let mut bytes = vec![1u8; 4 * PAGE as usize];
        bytes[PAGE as usize..2 * PAGE as usize].fill(0);
        let chunk = Chunk { bytes, pieces: vec![(7, 0x10000, 3 * PAGE as u32), (8, 100, PAGE as u32)] };
        let encoded = encode_chunk(chunk, Compression::None).unwrap();
        assert_eq!(encoded.zeros, [(7, 0x11000, PAGE)]);
        let runs: Vec<_> = encoded.runs.iter().map(|run| (run.object, run.offset, run.at, run.len)).collect();
        let page = PAGE as u32;
        assert_eq!(runs, [(7, 0x10000, 0, page), (7, 0x12000, page, page), (8, 100, 2 * page, page)]);
        assert_eq!(encoded.block.unwrap().raw_len(), 3 * PAGE as usize);
    }
}
