//! Pages from the frame into blank processes, and contents into files: blocks are read, checked and decompressed in parallel.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::ranges::{self, Ranges};
use crate::error::{Error, Kind, Result};
use crate::image::{Block, BlockId, Chain, Piece, Source};
use crate::resource::memory::AddressSpace;
use crate::sys::uffd::Uffd;
use crate::tracee::blank::Blank;
use crate::tracee::memory::Memory;
use crate::transfer::{Progress, Status};

/// Hands every stored piece of an object to `sink`, block by block.
pub fn each(chain: &Chain, object: u32, sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut current = None;
    let mut buffer = Block::default();
    for run in chain.runs(object) {
        let Source::Data { block, at } = run.source else { continue };
        if current != Some(block) {
            chain.read_block(block, &mut buffer)?;
            current = Some(block);
        }
        sink(run.offset, slice(buffer.raw(), at, run.len)?)?;
    }
    Ok(())
}

/// `len` bytes from `at` of a block.
pub fn slice(raw: &[u8], at: u32, len: u64) -> Result<&[u8]> {
    let at = at as usize;
    raw.get(at..at + len as usize).ok_or_else(|| Error::corrupt("a run reaches beyond its block"))
}

/// How many threads share the work.
pub fn workers() -> usize {
    thread::available_parallelism().map_or(2, usize::from).clamp(1, 8)
}

/// An address space of a blank process, mapped but without pages.
pub struct Target {
    object: u32,
    memory: Memory,
    /// Puts pages in place in half the time of a write, which clears them first.
    fast: Option<(Uffd, Ranges)>,
    /// What comes later, by the hands of a pager.
    later: Ranges,
}

impl Target {
    /// Gets ready to fill the memory of `blank`, all but `later`.
    pub fn new(chain: &Chain, space: &AddressSpace, blank: &mut Blank, later: Ranges) -> Result<Target> {
        let mut target = Target { object: space.object, memory: Memory::open(blank.pid)?, fast: None, later };
        // What a pager watches cannot be watched twice, and the rest is little then.
        let mut fast = if target.later.is_empty() { Ranges::around(chain.runs(space.object), space, ranges::fills_fast) } else { Ranges::default() };
        if !fast.is_empty() {
            // A right that is missing here costs time only.
            if let Ok(uffd) = ranges::watch(blank, 0) {
                fast.register(&uffd);
                target.fast = Some((uffd, fast));
            }
        }
        Ok(target)
    }

    /// Nobody may touch a missing page that is watched: there is no one to bring it but us.
    fn put(&self, run: &Piece, bytes: &[u8]) -> Result<()> {
        let Some((uffd, ranges)) = &self.fast else { return self.memory.write(run.offset, bytes) };
        for (part, watched) in ranges.cut(run) {
            let skip = (part.offset - run.offset) as usize;
            let bytes = &bytes[skip..skip + part.len as usize];
            match watched {
                true => place(uffd, part.offset, bytes)?,
                false => self.memory.write(part.offset, bytes)?,
            }
        }
        Ok(())
    }

    /// Fresh anonymous memory is zero already; a page of a private file mapping is not.
    fn put_zeros(&self, run: &Piece) -> Result<()> {
        match &self.fast {
            Some((_, ranges)) => ranges.cut(run).iter().filter(|(_, watched)| !watched).try_for_each(|(part, _)| write_zeros(&self.memory, part)),
            None => write_zeros(&self.memory, run),
        }
    }
}

/// Which runs of which target a block serves.
type Work<'a> = Vec<(BlockId, Vec<(&'a Target, Piece)>)>;

/// How often whoever wants to know is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// How far it is, for whoever wants to know.
struct Tally<'a> {
    progress: Option<&'a Progress>,
    expected: u64,
    done: AtomicU64,
    told: Mutex<Option<Instant>>,
}

impl Tally<'_> {
    /// So many more bytes are in place. An error if it is to be given up.
    fn add(&self, bytes: u64) -> Result<()> {
        let fed = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let (Some(progress), Ok(mut told)) = (self.progress, self.told.try_lock()) else { return Ok(()) };
        if told.is_some_and(|told| told.elapsed() < TELL_EVERY) && fed < self.expected {
            return Ok(());
        }
        *told = Some(Instant::now());
        match progress.tell(&Status { fed, expected: self.expected, ..Status::default() }) {
            true => Ok(()),
            false => Err(Error::new(Kind::Cancelled, "the restore was given up")),
        }
    }
}

/// Fills the address spaces; holes stay as they were mapped, zero runs are written where a file shows through.
pub fn spaces(chain: &Chain, targets: &[Target], progress: Option<&Progress>) -> Result<()> {
    let mut by_block: HashMap<BlockId, Vec<(&Target, Piece)>> = HashMap::new();
    for target in targets {
        for run in chain.runs(target.object).iter().filter(|run| !target.later.hold(run)) {
            for (run, _) in target.later.cut(run).into_iter().filter(|(_, later)| !later) {
                match run.source {
                    Source::Data { block, .. } => by_block.entry(block).or_default().push((target, run)),
                    Source::Zero => target.put_zeros(&run)?,
                }
            }
        }
    }
    let mut work: Work<'_> = by_block.into_iter().collect();
    work.sort_unstable_by_key(|(block, _)| *block);
    let expected = work.iter().flat_map(|(_, runs)| runs).map(|(_, run)| run.len).sum();
    let tally = Tally { progress, expected, done: AtomicU64::new(0), told: Mutex::new(None) };
    tally.add(0)?;
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let handles: Vec<_> = (0..workers()).map(|_| scope.spawn(|| fill_blocks(chain, &work, &next, &tally))).collect();
        handles.into_iter().try_for_each(|handle| handle.join().unwrap_or_else(|_| Err(Error::new(Kind::Io, "a filling thread failed"))))
    })
}

fn fill_blocks(chain: &Chain, work: &Work<'_>, next: &AtomicUsize, tally: &Tally<'_>) -> Result<()> {
    let mut buffer = Block::default();
    while let Some((block, runs)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
        // A page that proves to be damaged is no harm: nothing runs before all is in place.
        chain.pass_block(*block, &mut buffer, &mut |from, bytes| runs.iter().try_for_each(|(target, run)| put_part(target, run, from, bytes)))?;
        tally.add(runs.iter().map(|(_, run)| run.len).sum())?;
    }
    Ok(())
}

/// Puts in place what a run has in `bytes`, which are those of its block at `from`.
fn put_part(target: &Target, run: &Piece, from: usize, bytes: &[u8]) -> Result<()> {
    let Source::Data { at, .. } = run.source else { return Ok(()) };
    let (at, from) = (u64::from(at), from as u64);
    let (first, last) = (at.max(from), (at + run.len).min(from + bytes.len() as u64));
    if first >= last {
        return Ok(());
    }
    target.put(&run.part(run.offset + (first - at), run.offset + (last - at)), &bytes[(first - from) as usize..(last - from) as usize])
}

/// Puts whole pages in place; the kernel may stop half-way.
fn place(uffd: &Uffd, mut address: u64, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let placed = uffd.copy(address, bytes, false).map_err(|e| Error::io(format!("cannot place {} bytes of memory at {address:#x}", bytes.len()), e))?;
        bytes = &bytes[placed as usize..];
        address += placed;
    }
    Ok(())
}

fn write_zeros(memory: &Memory, run: &Piece) -> Result<()> {
    let mut page = [0u8; crate::sys::PAGE as usize];
    let mut at = run.offset;
    while at < run.end() {
        memory.read(at, &mut page)?;
        if page.iter().any(|&byte| byte != 0) {
            memory.write(at, &[0; crate::sys::PAGE as usize])?;
        }
        at += crate::sys::PAGE;
    }
    Ok(())
}
