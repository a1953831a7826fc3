//! Pages from the frame into blank processes, and contents into files: blocks are read, checked and decompressed in parallel.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::{Error, Kind, Result};
use crate::image::{BlockId, Chain, Piece, Source};
use crate::proc::Pid;
use crate::tracee::memory::Memory;

/// Hands every stored piece of an object to `sink`, block by block.
pub fn each(chain: &Chain, object: u32, sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut current = None;
    let mut raw = Vec::new();
    for run in chain.runs(object) {
        let Source::Data { block, at } = run.source else { continue };
        if current != Some(block) {
            raw.clear();
            chain.read_block(block, &mut raw)?;
            current = Some(block);
        }
        sink(run.offset, slice(&raw, at, run)?)?;
    }
    Ok(())
}

fn slice<'a>(raw: &'a [u8], at: u32, run: &Piece) -> Result<&'a [u8]> {
    let at = at as usize;
    raw.get(at..at + run.len as usize).ok_or_else(|| Error::corrupt("a run reaches beyond its block"))
}

/// Fills the address spaces `object → process`; holes stay as they were mapped, zero runs are written where a file shows through.
pub fn spaces(chain: &Chain, spaces: &HashMap<u32, Pid>) -> Result<()> {
    let mut by_block: HashMap<BlockId, Vec<(Pid, Piece)>> = HashMap::new();
    for (&object, &pid) in spaces {
        for run in chain.runs(object) {
            match run.source {
                Source::Data { block, .. } => by_block.entry(block).or_default().push((pid, *run)),
                Source::Zero => write_zeros(&Memory::open(pid)?, run)?,
            }
        }
    }
    let mut work: Vec<(BlockId, Vec<(Pid, Piece)>)> = by_block.into_iter().collect();
    work.sort_unstable_by_key(|(block, _)| *block);
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(2, usize::from).clamp(1, 8);
    thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(|| fill_blocks(chain, &work, &next))).collect();
        handles.into_iter().try_for_each(|handle| handle.join().unwrap_or_else(|_| Err(Error::new(Kind::Io, "a filling thread failed"))))
    })
}

fn fill_blocks(chain: &Chain, work: &[(BlockId, Vec<(Pid, Piece)>)], next: &AtomicUsize) -> Result<()> {
    let mut memories: HashMap<Pid, Memory> = HashMap::new();
    let mut raw = Vec::new();
    while let Some((block, runs)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
        raw.clear();
        chain.read_block(*block, &mut raw)?;
        for (pid, run) in runs {
            let Source::Data { at, .. } = run.source else { continue };
            if !memories.contains_key(pid) {
                memories.insert(*pid, Memory::open(*pid)?);
            }
            memories[pid].write(run.offset, slice(&raw, at, run)?)?;
        }
    }
    Ok(())
}

/// Fresh anonymous memory is zero already; a page of a private file mapping is not.
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
