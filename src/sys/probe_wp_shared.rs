//! Whether asynchronous write protection tells the truth of shared memory that is mapped twice.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::mirror::Mirror;
use super::pagemap::{self, category, Query};
use super::uffd::{feature, mode, Uffd, USER_MODE_ONLY};
use super::{check, PAGE};

const LEN: u64 = 4 << 20;
const PAGES: u64 = LEN / PAGE;

/// A shared mapping of our own; unmapped when dropped.
struct View {
    start: u64,
}

impl View {
    fn of(file: &File) -> io::Result<View> {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), LEN as usize, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(View { start: start as u64 })
    }

    fn touch(&self, page: u64) {
        // SAFETY: the byte lies in the mapping, in which no reference points; the file has that page or gets it.
        unsafe { std::ptr::write_volatile((self.start + page * PAGE) as *mut u8, 1) };
    }

    fn read(&self, page: u64) -> u8 {
        // SAFETY: as above.
        unsafe { std::ptr::read_volatile((self.start + page * PAGE) as *const u8) }
    }

    fn advise(&self, page: u64, pages: u64, advice: i32) -> io::Result<()> {
        // SAFETY: the range lies in the mapping, in which no reference points.
        check(unsafe { libc::madvise((self.start + page * PAGE) as *mut libc::c_void, (pages * PAGE) as usize, advice) }.into()).map(drop)
    }

    /// Written pages (first, behind the last), protected again if asked to.
    fn written(&self, pagemap: &File, protect: bool) -> io::Result<Vec<(u64, u64)>> {
        let query = Query { all_of: category::WRITTEN, report: category::WRITTEN, registered: true, protect, ..Query::default() };
        let found = pagemap::find(pagemap, self.start, self.start + LEN, query)?;
        Ok(found.iter().map(|region| ((region.start - self.start) / PAGE, (region.end - self.start) / PAGE)).collect())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone.
        unsafe { libc::munmap(self.start as *mut libc::c_void, LEN as usize) };
    }
}

/// Writes, drops and punches pages by way of two mappings, and sees whether each shows: `Ok(false)` if one does not.
pub fn tells_the_truth() -> io::Result<bool> {
    let file = File::from(nix::sys::memfd::memfd_create("stillframe", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?);
    file.set_len(LEN)?;
    let (a, b) = (View::of(&file)?, View::of(&file)?);
    (0..PAGES).for_each(|page| a.touch(page));
    let pagemap = File::open("/proc/self/pagemap")?;
    let uffd = Uffd::own(USER_MODE_ONLY)?;
    uffd.handshake(feature::WP | feature::WP_UNPOPULATED | feature::WP_SHMEM | feature::WP_ASYNC)?;
    uffd.register(a.start, LEN, mode::WP)?;
    uffd.register(b.start, LEN, mode::WP)?;
    let mut mirror = Mirror::new(&file, LEN)?;
    mirror.take_in(&[(0, LEN)])?;
    let all = [(0, PAGES)];
    // What was never protected is written, whether it is in the page table or not.
    let mut sound = a.written(&pagemap, true)? == all && b.written(&pagemap, true)? == all && mirror.absent(&[(0, LEN)])?.is_empty();
    sound &= a.written(&pagemap, false)?.is_empty() && b.written(&pagemap, false)?.is_empty();
    // Each mapping tells of its own writes, and reading is none.
    a.touch(3);
    b.touch(600);
    sound &= b.read(5) == 1;
    sound &= a.written(&pagemap, false)? == [(3, 4)] && b.written(&pagemap, false)? == [(600, 601)];
    // A written page that leaves the page table is still written.
    a.advise(2, 3, libc::MADV_DONTNEED)?;
    sound &= a.written(&pagemap, true)? == [(3, 4)];
    // Punched pages show in the mirror, be they read again or written again.
    a.advise(16, 3, libc::MADV_REMOVE)?;
    sound &= a.read(16) == 0;
    b.touch(17);
    sound &= mirror.absent(&[(0, LEN)])? == [(16 * PAGE, 19 * PAGE)] && b.written(&pagemap, false)? == [(17, 18), (600, 601)];
    // One that comes back to the mirror brings no neighbour along.
    mirror.take_in(&[(17 * PAGE, 18 * PAGE)])?;
    sound &= mirror.absent(&[(0, LEN)])? == [(16 * PAGE, 17 * PAGE), (18 * PAGE, 19 * PAGE)];
    Ok(sound)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_kernel_tells_the_truth() {
        assert!(super::tells_the_truth().unwrap());
    }
}
