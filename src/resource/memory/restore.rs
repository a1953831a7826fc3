//! Building an address space in a blank process: the kernel's mappings moved to their old place, every mapping at its address.

use std::os::fd::AsFd;

use super::{AddressSpace, Backing, Mapping};
use crate::error::{Error, Result};
use crate::proc::{self, maps};
use crate::resource::files::open::Opener;
use crate::sys::PAGE;
use crate::tracee::blank::{Blank, SCRATCH_LEN};
use crate::tracee::RemoteExt;

const LOWEST: u64 = 0x10_0000;
const HIGHEST: u64 = 0x7fff_ffff_0000;

/// The lowest address with `len` free bytes around all `taken` ranges.
pub fn find_hole(taken: &mut [(u64, u64)], len: u64) -> Option<u64> {
    taken.sort_unstable();
    let mut at = LOWEST;
    for &(start, end) in taken.iter() {
        // A gap on both sides, for stacks that grow.
        if start > at && start - at >= len + 512 * PAGE {
            return Some(at + 256 * PAGE);
        }
        at = at.max(end);
    }
    (at + len + 512 * PAGE < HIGHEST).then_some(at + 256 * PAGE)
}

/// Empties a blank process and maps all of `space`, with every private mapping still writable.
pub fn prepare(space: &AddressSpace, blank: &mut Blank, opener: &mut Opener<'_>) -> Result<()> {
    let own = maps::read(&proc::path(blank.pid, "maps"))?;
    let mut taken: Vec<(u64, u64)> = own.iter().map(|vma| (vma.start, vma.end)).chain(space.mappings.iter().map(|m| (m.start, m.end))).collect();
    let hole = find_hole(&mut taken, 2 * SCRATCH_LEN).ok_or_else(|| Error::refused(format!("pid {}: its address space has no hole for scratch memory", blank.pid)))?;
    blank.map_scratch(hole)?;
    for vma in own.iter().filter(|vma| !vma.name.starts_with("[v")) {
        blank.must("unmap its first memory", libc::SYS_munmap, [vma.start, vma.len(), 0, 0, 0, 0])?;
    }
    let kernel: Vec<&maps::Vma> = own.iter().filter(|vma| vma.name.starts_with("[v") && vma.name != "[vsyscall]").collect();
    move_kernel_mappings(space, blank, &kernel, hole + SCRATCH_LEN)?;
    let mut open = OpenFiles::default();
    for mapping in &space.mappings {
        map(mapping, blank, opener, &mut open)?;
    }
    open.close(blank)
}

/// Moves vDSO and vvar to where the frame had them, by way of a hole, lest old and new places overlap.
fn move_kernel_mappings(space: &AddressSpace, blank: &mut Blank, own: &[&maps::Vma], hole: u64) -> Result<()> {
    let wanted: Vec<&Mapping> = space.mappings.iter().filter(|m| matches!(m.backing, Backing::Kernel(_))).collect();
    let same = own.len() == wanted.len() && own.iter().zip(&wanted).all(|(have, want)| Backing::Kernel(have.name.clone()) == want.backing && have.len() == want.len());
    if !same {
        return Err(Error::refused("the vDSO of this kernel is laid out otherwise than the frame's; restore on the kernel version that the frame was taken on"));
    }
    let Some(first) = own.first() else { return Ok(()) };
    for (have, want) in own.iter().zip(&wanted) {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let temporary = hole + (have.start - first.start);
        for (from, to) in [(have.start, temporary), (temporary, want.start)] {
            if from == to {
                continue;
            }
            if matches!(&want.backing, Backing::Kernel(name) if name == "[vdso]") {
                blank.move_vdso(from, to, have.len())?;
            } else {
                blank.must("move the kernel's data page", libc::SYS_mremap, [from, have.len(), have.len(), flags, to, 0])?;
            }
        }
    }
    Ok(())
}

/// The file that the last mapping used, still open in the blank process: neighbours usually map the same one.
#[derive(Default)]
struct OpenFiles {
    last: Option<(usize, i32, u64)>,
}

impl OpenFiles {
    fn get(&mut self, id: usize, flags: i32, blank: &mut Blank, opener: &mut Opener<'_>) -> Result<u64> {
        if let Some((last, last_flags, fd)) = self.last {
            if (last, last_flags) == (id, flags) {
                return Ok(fd);
            }
        }
        self.close(blank)?;
        let local = opener.open(id, flags)?;
        let fd = blank.borrow(local.as_fd())?;
        self.last = Some((id, flags, fd));
        Ok(fd)
    }

    fn close(&mut self, blank: &mut Blank) -> Result<()> {
        match self.last.take() {
            Some((_, _, fd)) => blank.must("close a mapped file", libc::SYS_close, [fd, 0, 0, 0, 0, 0]).map(drop),
            None => Ok(()),
        }
    }
}

fn map(mapping: &Mapping, blank: &mut Blank, opener: &mut Opener<'_>, open: &mut OpenFiles) -> Result<()> {
    let mut flags = libc::MAP_FIXED_NOREPLACE | if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let mut fd = u64::MAX;
    match mapping.backing {
        Backing::Kernel(_) => return Ok(()),
        Backing::Segment(id) => return attach(mapping, opener.segment(id)?, blank),
        Backing::Anonymous => flags |= libc::MAP_ANONYMOUS,
        Backing::HugePages(size) => flags |= libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | ((size.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT),
        Backing::File(id) => {
            let writable = mapping.shared && mapping.has("mw");
            fd = open.get(id, if writable { libc::O_RDWR } else { libc::O_RDONLY }, blank, opener)?;
        }
    }
    let extra = [("gd", libc::MAP_GROWSDOWN), ("nr", libc::MAP_NORESERVE)];
    flags |= extra.iter().filter(|(name, _)| mapping.has(name)).fold(0, |all, (_, flag)| all | flag);
    let prot = if mapping.shared { mapping.prot } else { mapping.prot | libc::PROT_WRITE };
    let args = [mapping.start, mapping.len(), prot as u64, flags as u64, fd, mapping.offset];
    let args = if fd == u64::MAX { [args[0], args[1], args[2], args[3], fd, 0] } else { args };
    blank.must(&format!("map {:x}-{:x}", mapping.start, mapping.end), libc::SYS_mmap, args)?;
    // Before the pages come, so that they come as huge pages.
    for (flag, advice) in [("hg", libc::MADV_HUGEPAGE), ("nh", libc::MADV_NOHUGEPAGE)] {
        if mapping.has(flag) {
            let _ = blank.must("advise", libc::SYS_madvise, [mapping.start, mapping.len(), advice as u64, 0, 0, 0]);
        }
    }
    Ok(())
}

fn attach(mapping: &Mapping, segment: i32, blank: &mut Blank) -> Result<()> {
    let mut flags = 0;
    if mapping.prot & libc::PROT_WRITE == 0 && !mapping.has("mw") {
        flags |= libc::SHM_RDONLY;
    }
    if mapping.prot & libc::PROT_EXEC != 0 {
        flags |= libc::SHM_EXEC;
    }
    blank.must(&format!("attach System V segment {segment}"), libc::SYS_shmat, [segment as u64, mapping.start, flags as u64, 0, 0, 0])?;
    Ok(())
}

/// After the pages: advice, guards, final protections and locks.
pub fn protect(space: &AddressSpace, blank: &mut Blank, notes: &mut Vec<String>) -> Result<()> {
    const ADVICE: [(&str, i32); 6] = [
        ("dc", libc::MADV_DONTFORK), ("wf", libc::MADV_WIPEONFORK), ("dd", libc::MADV_DONTDUMP),
        ("mg", libc::MADV_MERGEABLE), ("sr", libc::MADV_SEQUENTIAL), ("rr", libc::MADV_RANDOM),
    ];
    for &(start, len) in &space.guards {
        const MADV_GUARD_INSTALL: u64 = 102;
        blank.must("install guard pages", libc::SYS_madvise, [start, len, MADV_GUARD_INSTALL, 0, 0, 0])?;
    }
    for mapping in space.mappings.iter().filter(|m| !matches!(m.backing, Backing::Kernel(_))) {
        let range = (mapping.start, mapping.len());
        for (_, advice) in ADVICE.iter().filter(|(flag, _)| mapping.has(flag)) {
            if let Err(e) = blank.must(&format!("advise {:x}", range.0), libc::SYS_madvise, [range.0, range.1, *advice as u64, 0, 0, 0]) {
                notes.push(e.to_string());
            }
        }
        let changed = !mapping.shared && mapping.prot & libc::PROT_WRITE == 0;
        if changed || matches!(mapping.backing, Backing::Segment(_)) {
            blank.must(&format!("protect {:x}", range.0), libc::SYS_mprotect, [range.0, range.1, mapping.prot as u64, 0, 0, 0])?;
        }
        if mapping.has("lo") {
            const MLOCK_ONFAULT: u64 = 1;
            let on_fault = if mapping.has("lf") { MLOCK_ONFAULT } else { 0 };
            if let Err(e) = blank.must(&format!("lock {:x}", range.0), libc::SYS_mlock2, [range.0, range.1, on_fault, 0, 0, 0]) {
                notes.push(e.to_string());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_touches_nothing() {
        let mut taken = vec![(0x7000_0000_0000, 0x7000_0001_0000), (0x40_0000, 0x50_0000)];
        let hole = find_hole(&mut taken, 2 << 20).unwrap();
        assert!(taken.iter().all(|&(start, end)| hole + (2 << 20) <= start || hole >= end), "{hole:x}");
    }
}
