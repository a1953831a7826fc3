//! Whether asynchronous write protection tells the truth on this kernel: some lose the dropping of pages.

use std::fs::File;
use std::io;

use super::pagemap::{self, category, Query};
use super::uffd::{feature, mode, Uffd, USER_MODE_ONLY};
use super::PAGE;

const LEN: u64 = 8 << 20;
const THERE: u64 = category::PRESENT | category::SWAPPED;

/// A few megabytes of our own, at an address that huge pages can have; unmapped when dropped.
struct Area {
    mapped: *mut libc::c_void,
    start: u64,
}

impl Area {
    fn new() -> io::Result<Area> {
        const HUGE: u64 = 2 << 20;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), (LEN + HUGE) as usize, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Area { mapped, start: (mapped as u64).next_multiple_of(HUGE) })
    }

    fn advise(&self, offset: u64, len: u64, advice: i32) -> io::Result<()> {
        // SAFETY: the range lies in the mapping, in which no reference points.
        super::check(unsafe { libc::madvise((self.start + offset) as *mut libc::c_void, len as usize, advice) }.into()).map(drop)
    }

    fn touch(&self, offset: u64, len: u64) {
        for at in (self.start + offset..self.start + offset + len).step_by(PAGE as usize) {
            // SAFETY: the byte lies in the mapping, in which no reference points.
            unsafe { std::ptr::write_volatile(at as *mut u8, 1) };
        }
    }

    fn read(&self, offset: u64) -> u8 {
        // SAFETY: the byte lies in the mapping, in which no reference points.
        unsafe { std::ptr::read_volatile((self.start + offset) as *const u8) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone.
        unsafe { libc::munmap(self.mapped, (LEN + (2 << 20)) as usize) };
    }
}

/// Writes, drops and reads pages of our own, and sees whether each shows: `Ok(false)` if one does not.
pub fn tells_the_truth() -> io::Result<bool> {
    for huge in [false, true] {
        let area = Area::new()?;
        // A kernel without huge pages has none to get wrong.
        let _ = area.advise(0, LEN, if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE });
        if !tries(&area)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn tries(area: &Area) -> io::Result<bool> {
    const MIB: u64 = 1 << 20;
    let pagemap = File::open("/proc/self/pagemap")?;
    let uffd = Uffd::own(USER_MODE_ONLY)?;
    uffd.handshake(feature::WP | feature::WP_UNPOPULATED | feature::WP_ASYNC)?;
    area.touch(0, 6 * MIB);
    uffd.register(area.start, LEN, mode::WP)?;
    let present = Query { all_of: category::WRITTEN, any_of: THERE, report: THERE, protect: true, ..Query::default() };
    let arm = || pagemap::find(&pagemap, area.start, area.start + LEN, present);
    let fast = Query { all_of: category::WRITTEN, report: category::WRITTEN, registered: true, ..Query::default() };
    let written = || -> io::Result<Vec<(u64, u64)>> {
        let found = pagemap::find(&pagemap, area.start, area.start + LEN, fast)?;
        Ok(found.iter().map(|region| (region.start - area.start, region.end - area.start)).collect())
    };
    arm()?;
    // Holes always show; what is armed does not.
    let mut sound = written()? == [(6 * MIB, 8 * MIB)];
    area.touch(5 * PAGE, 1);
    sound &= written()? == [(5 * PAGE, 6 * PAGE), (6 * MIB, 8 * MIB)];
    arm()?;
    // A page, a whole table of pages, and half of one.
    area.advise(16 * PAGE, PAGE, libc::MADV_DONTNEED)?;
    area.advise(2 * MIB, 2 * MIB, libc::MADV_DONTNEED)?;
    area.advise(5 * MIB, MIB, libc::MADV_DONTNEED)?;
    let dropped = [(16 * PAGE, 17 * PAGE), (2 * MIB, 4 * MIB), (5 * MIB, 8 * MIB)];
    sound &= written()? == dropped;
    // Read again, it is the page of zeros, and still not what it was.
    sound &= area.read(16 * PAGE) == 0 && area.read(3 * MIB) == 0;
    sound &= written()? == dropped;
    area.touch(3 * MIB, PAGE);
    sound &= written()? == dropped;
    Ok(sound)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_kernel_tells_the_truth() {
        assert!(super::tells_the_truth().unwrap());
    }
}
