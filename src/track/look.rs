//! The last look at a space that stands still, in parts that several threads may share.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::scan::{self, has_file, is_trackable};
use super::{is_shared_memory, Range, Ranges};
use crate::error::{Context, Result};
use crate::proc::{maps::Vma, Pid};
use crate::sys::pagemap::Region;

/// Bytes of memory in one part.
const PART: u64 = 256 << 20;

/// What changed since the last round, as far as it was looked at.
#[derive(Debug)]
pub struct Look {
    pid: Pid,
    pagemap: File,
    parts: Vec<Part>,
    shared: Vec<Vma>,
    next: AtomicUsize,
    found: Mutex<io::Result<Vec<Region>>>,
}

#[derive(Debug)]
struct Part {
    range: Range,
    of_file: bool,
    packed: bool,
}

impl Look {
    pub(super) fn new(pid: Pid, pagemap: File, vmas: Vec<Vma>, dense: &Ranges) -> Look {
        let mut parts = Vec::new();
        for vma in vmas.iter().filter(|vma| is_trackable(vma)) {
            let whole = Ranges::of(vec![(vma.start, vma.end)]);
            let of_file = has_file(vma);
            let packed = if of_file { Ranges::default() } else { whole.intersect(dense) };
            parts.extend(whole.minus(&packed).as_slice().iter().map(|&range| Part { range, of_file, packed: false }));
            for &(start, end) in packed.as_slice() {
                parts.extend((start..end).step_by(PART as usize).map(|at| Part { range: (at, end.min(at + PART)), of_file, packed: true }));
            }
        }
        let shared = vmas.into_iter().filter(is_shared_memory).collect();
        Look { pid, pagemap, parts, shared, next: AtomicUsize::new(0), found: Mutex::new(Ok(Vec::new())) }
    }

    /// Looks at parts that nobody has looked at, until there are none; what another thread has begun is not waited for.
    pub fn help(&self) {
        let mut own = Vec::new();
        while let Some(part) = self.parts.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            match scan::changed(&self.pagemap, part.range, part.of_file, part.packed) {
                Ok(regions) => own.extend(regions),
                Err(e) => {
                    *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Err(e);
                    return;
                }
            }
        }
        if let Ok(found) = self.found.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            found.append(&mut own);
        }
    }

    /// All addresses that were to be looked at, what was found there, and the mappings of shared memory, at which it does not look;
    /// once every helper is done.
    pub(super) fn end(self) -> Result<(Ranges, Vec<Region>, Vec<Vma>)> {
        let found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let found = found.context(format_args!("pid {}: cannot see its writes", self.pid))?;
        Ok((Ranges::of(self.parts.iter().map(|part| part.range).collect()), found, self.shared))
    }
}
