//! A frame against the stopped processes it was taken of, by way of /proc alone.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::kit;
use stillframe::image::{Chain, Source};
use stillframe::manifest::Manifest;
use stillframe::proc::maps;
use stillframe::resource::memory::{AddressSpace, Backing, Mapping};

const PAGE: u64 = 4096;
/// Length of an rseq area as the kernel fills it.
const RSEQ: u64 = 32;

/// All private memory of all processes of the frame; the error names the first byte that differs.
pub fn frame(chain: &Chain) -> Result<(), String> {
    let manifest = Manifest::from_bytes(chain.manifest()).map_err(|e| e.to_string())?;
    for (index, space) in manifest.spaces.iter().enumerate() {
        let owner = manifest.processes.iter().find(|process| process.body.as_ref().is_some_and(|body| body.space == index)).ok_or("a space without a process")?;
        let pid = owner.node.pid;
        kit::eventually("the stop of all threads", || stands_still(pid).then_some(()));
        let truth = Truth { mem: File::open(format!("/proc/{pid}/mem")).unwrap(), pagemap: File::open(format!("/proc/{pid}/pagemap")).unwrap() };
        let said = Said::of(chain, space);
        said.lies_within(space)?;
        flags(pid, space)?;
        for mapping in space.mappings.iter().filter(|mapping| mapping.is_private()) {
            same(&truth, &said, mapping, &manifest, space).map_err(|e| format!("process {pid}, mapping {:x}-{:x}: {e}", mapping.start, mapping.end))?;
        }
    }
    Ok(())
}

/// The flags of all private mappings, those that were made in the last moment too.
fn flags(pid: i32, space: &AddressSpace) -> Result<(), String> {
    let smaps = maps::parse_smaps(&fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap()).unwrap();
    // Being watched is none of the program's doing, guards are compared page by page, and advice about huge pages may be as old as
    // the survey.
    let own = |flags: &[String]| flags.iter().filter(|flag| !["uw", "gu", "hg", "nh"].contains(&flag.as_str())).cloned().collect::<BTreeSet<_>>();
    for mapping in space.mappings.iter().filter(|mapping| mapping.is_private()) {
        let there = smaps.iter().find(|flagged| flagged.vma.start == mapping.start).ok_or_else(|| format!("process {pid}: nothing is mapped at {:x}", mapping.start))?;
        if own(&there.flags) != own(&mapping.flags) {
            return Err(format!("process {pid}, mapping {:x}: the kernel tells flags {:?}, the frame {:?}", mapping.start, there.flags, mapping.flags));
        }
    }
    Ok(())
}

/// A thread that has a stop before it needs a processor to get there.
fn stands_still(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.contains(") T ")))
}

/// What the kernel tells of a stopped process.
struct Truth {
    mem: File,
    pagemap: File,
}

impl Truth {
    /// For every page: whether it is there or swapped out, and whether it is a guard.
    fn pages(&self, mapping: &Mapping) -> Vec<(bool, bool)> {
        let mut raw = vec![0; ((mapping.end - mapping.start) / PAGE * 8) as usize];
        self.pagemap.read_exact_at(&mut raw, mapping.start / PAGE * 8).unwrap();
        let entry = |raw: &[u8]| u64::from_le_bytes(raw.try_into().unwrap());
        raw.chunks(8).map(entry).map(|entry| (entry >> 62 != 0, entry >> 58 & 1 == 1)).collect()
    }
}

/// What the frame says of one space: pieces of bytes, in order.
struct Said {
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Said {
    fn of(chain: &Chain, space: &AddressSpace) -> Said {
        let mut pieces = Vec::new();
        for piece in chain.runs(space.object) {
            let mut bytes = vec![0; piece.len as usize];
            if !matches!(piece.source, Source::Zero) {
                chain.read_at(space.object, piece.offset, &mut bytes).unwrap();
            }
            pieces.push((piece.offset, bytes));
        }
        Said { pieces }
    }

    /// The frame's bytes of a page, if it has them.
    fn page(&self, at: u64) -> Option<&[u8]> {
        let next = self.pieces.partition_point(|(start, _)| *start <= at);
        let (start, bytes) = self.pieces.get(next.checked_sub(1)?)?;
        let from = (at - start) as usize;
        bytes.get(from..from + PAGE as usize)
    }

    fn lies_within(&self, space: &AddressSpace) -> Result<(), String> {
        let inside = |at: u64| space.mappings.iter().any(|mapping| mapping.is_private() && mapping.start <= at && at < mapping.end);
        match self.pieces.iter().find(|(start, bytes)| !inside(*start) || !inside(start + bytes.len() as u64 - 1)) {
            Some((start, _)) => Err(format!("the frame has bytes at {start:x}, where nothing private is mapped")),
            None => Ok(()),
        }
    }
}

fn same(truth: &Truth, said: &Said, mapping: &Mapping, manifest: &Manifest, space: &AddressSpace) -> Result<(), String> {
    let file = match &mapping.backing {
        Backing::File(id) => fs::read(&manifest.files[*id].path).unwrap_or_default(),
        _ => Vec::new(),
    };
    let bodies = manifest.processes.iter().filter_map(|process| process.body.as_ref());
    let rseq: Vec<u64> = bodies.flat_map(|body| &body.threads).map(|thread| thread.state.rseq.address).collect();
    for (number, (there, guard)) in truth.pages(mapping).into_iter().enumerate() {
        let at = mapping.start + number as u64 * PAGE;
        let told = space.guards.iter().any(|(start, len)| *start <= at && at < start + len);
        if guard != told {
            return Err(format!("page {at:x}: guard is {guard}, the frame says {told}"));
        }
        let from = (mapping.offset + number as u64 * PAGE) as usize;
        let plain: Vec<u8> = file.iter().skip(from).take(PAGE as usize).copied().chain(std::iter::repeat(0)).take(PAGE as usize).collect();
        let mut is = plain.clone();
        // What cannot be read lies beyond the end of a file, or is a guard.
        if there && !guard && truth.mem.read_exact_at(&mut is, at).is_err() {
            is.clone_from(&plain);
        }
        let frame = said.page(at).unwrap_or(&plain);
        // The kernel notes the processor in a thread's rseq area whenever it returns to the program, which a frame sets anew.
        let noted = |i: usize| rseq.iter().any(|area| (*area..area + RSEQ).contains(&(at + i as u64)));
        if let Some(offset) = (0..PAGE as usize).find(|&i| frame[i] != is[i] && !noted(i)) {
            let held = if said.page(at).is_some() { "holds" } else { "has no page, so it would be" };
            return Err(format!("page {at:x} byte {offset}: the process has {:02x}, the frame {held} {:02x}; {:?}", is[offset], frame[offset], mapping.backing));
        }
    }
    Ok(())
}

/// Nothing is registered with a userfaultfd any more.
pub fn assert_unwatched(pid: i32) {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let watched = smaps.lines().find(|line| line.starts_with("VmFlags") && (line.contains(" uw") || line.contains(" um")));
    assert!(watched.is_none(), "{watched:?}");
}
