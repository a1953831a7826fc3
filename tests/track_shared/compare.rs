//! Shared memory in a frame against the shared memory of the stopped processes, read by way of /proc/PID/map_files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::kit;
use stillframe::image::{Chain, Source};
use stillframe::manifest::Manifest;
use stillframe::resource::memory::Backing;

const PAGE: usize = 4096;

/// What a frame has of shared memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Memories compared.
    pub memories: usize,
    /// Of their bytes, those that are stored in the frame itself and not in a parent.
    pub own: u64,
}

/// Compares all shared memory of all processes of the frame; the error names the first byte that differs.
pub fn frame(chain: &Chain) -> Result<Seen, String> {
    let manifest = Manifest::from_bytes(chain.manifest()).map_err(|e| e.to_string())?;
    let mut seen = Seen::default();
    let mut done = Vec::new();
    for process in &manifest.processes {
        let pid = process.node.pid;
        kit::eventually("the stop of all threads", || stands_still(pid).then_some(()));
        let Some(body) = &process.body else { continue };
        for mapping in &manifest.spaces[body.space].mappings {
            let (Backing::File(id) | Backing::Segment(id)) = mapping.backing else { continue };
            let file = &manifest.files[id];
            let Some(object) = file.content.filter(|_| mapping.shared && file.needs_content() && !done.contains(&id)) else { continue };
            let link = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end)).map_err(|e| format!("process {pid} at {:x}: {e}", mapping.start))?;
            let mut truth = vec![0; file.size as usize];
            link.read_exact_at(&mut truth, 0).map_err(|e| e.to_string())?;
            same(chain, object, &truth).map_err(|e| format!("{} as process {pid} maps it: {e}", file.path.display()))?;
            seen.own += chain.runs(object).iter().filter(|piece| matches!(piece.source, Source::Data { block, .. } if block.frame == 0)).map(|piece| piece.len).sum::<u64>();
            seen.memories += 1;
            done.push(id);
        }
    }
    Ok(seen)
}

fn same(chain: &Chain, object: u32, truth: &[u8]) -> Result<(), String> {
    let mut said = vec![0; truth.len()];
    for piece in chain.runs(object) {
        let place = piece.offset as usize..(piece.offset + piece.len) as usize;
        let end = said.len();
        let part = said.get_mut(place).ok_or_else(|| format!("the frame has bytes at {:x}, behind its end at {end:x}", piece.offset))?;
        if !matches!(piece.source, Source::Zero) {
            chain.read_at(object, piece.offset, part).map_err(|e| e.to_string())?;
        }
    }
    for (number, (said, truth)) in said.chunks(PAGE).zip(truth.chunks(PAGE)).enumerate() {
        if let Some(at) = (0..truth.len()).find(|&at| said[at] != truth[at]) {
            return Err(format!("page {number} byte {at}: the memory has {:02x}, the frame {:02x}", truth[at], said[at]));
        }
    }
    Ok(())
}

/// A thread that has a stop before it needs a processor to get there.
fn stands_still(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    tasks.flatten().all(|task| fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.contains(") T ") || stat.contains(") Z ")))
}
