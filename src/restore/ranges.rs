//! Which stretches of a fresh address space a userfaultfd can put pages into, and runs cut along them.

use std::os::fd::AsFd;

use crate::error::{Context, Result};
use crate::image::{Piece, Source};
use crate::resource::memory::{AddressSpace, Backing, Mapping};
use crate::sys::pidfd;
use crate::sys::uffd::{feature, mode, Uffd};
use crate::tracee::blank::Blank;
use crate::tracee::RemoteExt;

/// Holes up to this length are watched along with the pages around them: each stretch costs the kernel a mapping.
const BRIDGED: u64 = 1 << 20;
/// Shorter stretches are not worth a mapping of their own.
const SHORTEST: u64 = 16 << 10;

/// What a process hears of when it is watched for pages that come later.
pub const EVENTS: u64 = feature::EVENT_FORK | feature::EVENT_REMAP | feature::EVENT_REMOVE | feature::EVENT_UNMAP;

/// Sorted address ranges (start, end) that do not overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Around the stored pages of `runs`, the parts of the mappings that `wanted` chooses. Both are sorted by address.
    pub fn around(runs: &[Piece], space: &AddressSpace, wanted: impl Fn(&Mapping) -> bool) -> Ranges {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut mappings = space.mappings.iter().filter(|mapping| wanted(mapping)).peekable();
        for run in runs.iter().filter(|run| run.source != Source::Zero) {
            let mut from = run.offset;
            while mappings.next_if(|mapping| mapping.end <= from).is_some() {}
            while let Some(mapping) = mappings.peek().filter(|mapping| mapping.start < run.end()) {
                let part = (from.max(mapping.start), run.end().min(mapping.end));
                match ranges.last_mut() {
                    Some(last) if last.0 >= mapping.start && part.0 - last.1 < BRIDGED => last.1 = part.1,
                    _ => ranges.push(part),
                }
                if mapping.end > run.end() {
                    break;
                }
                from = mapping.end;
                mappings.next();
            }
        }
        ranges.retain(|range| range.1 - range.0 >= SHORTEST);
        Ranges(ranges)
    }

    /// Keeps the ranges that `uffd` can watch.
    pub fn register(&mut self, uffd: &Uffd) {
        self.0.retain(|&(start, end)| uffd.register(start, end - start, mode::MISSING).is_ok());
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of a run lies in one of the ranges.
    pub fn hold(&self, run: &Piece) -> bool {
        let next = self.0.partition_point(|range| range.1 < run.end());
        self.0.get(next).is_some_and(|range| range.0 <= run.offset)
    }

    /// Cuts a run at the ends of the ranges; true for the parts inside.
    pub fn cut(&self, run: &Piece) -> Vec<(Piece, bool)> {
        let mut parts = Vec::new();
        let mut at = run.offset;
        let first = self.0.partition_point(|range| range.1 <= at);
        for &(start, end) in self.0[first..].iter().take_while(|range| range.0 < run.end()) {
            if at < start {
                parts.push((run.part(at, start), false));
                at = start;
            }
            parts.push((run.part(at, end.min(run.end())), true));
            at = end.min(run.end());
        }
        if at < run.end() {
            parts.push((run.part(at, run.end()), false));
        }
        parts
    }
}

/// Private anonymous memory without explicit huge pages.
pub fn is_plain(mapping: &Mapping) -> bool {
    mapping.backing == Backing::Anonymous && !mapping.shared
}

/// Memory that userfaultfd fills faster than writes do, because no page is cleared first. Where huge pages are wanted, writes
/// bring them and userfaultfd does not.
pub fn fills_fast(mapping: &Mapping) -> bool {
    is_plain(mapping) && !mapping.has("hg")
}

/// A userfaultfd for the memory of a blank process, made there, closed there, ours now.
pub fn watch(blank: &mut Blank, features: u64) -> Result<Uffd> {
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
    let number = blank.must("make a userfaultfd", libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0])?;
    let taken = pidfd::open(blank.pid).and_then(|process| pidfd::get(process.as_fd(), number as i32));
    blank.must("close its userfaultfd", libc::SYS_close, [number, 0, 0, 0, 0, 0])?;
    let uffd = Uffd::from(taken.context("cannot take over a userfaultfd")?);
    uffd.handshake(features).context("cannot use a userfaultfd")?;
    Ok(uffd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, end: u64) -> Piece {
        Piece { object: 1, offset: start, len: end - start, source: Source::Zero }
    }

    #[test]
    fn runs_are_held_whole_or_cut_at_the_ends() {
        let ranges = Ranges(vec![(10, 20), (20, 30), (40, 50)]);
        let held = [(10, 20), (12, 13), (41, 50)];
        let cut = [(9, 11), (15, 25), (28, 32), (30, 40), (49, 51), (60, 70)];
        for (start, end) in held {
            assert!(ranges.hold(&run(start, end)));
            assert_eq!(ranges.cut(&run(start, end)), [(run(start, end), true)]);
        }
        assert!(!cut.iter().any(|&(start, end)| ranges.hold(&run(start, end))));
        assert_eq!(ranges.cut(&run(15, 45)), [(run(15, 20), true), (run(20, 30), true), (run(30, 40), false), (run(40, 45), true)]);
    }
}
