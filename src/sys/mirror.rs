//! A look at shared memory from our side: a mapping of our own that loses each page that is punched out of the memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::pagemap::{self, category, Query};
use super::uffd::{feature, mode, Uffd, USER_MODE_ONLY};
use super::{check, process_vm, PAGE};

/// Pages that are asked for at once.
const STEP: u64 = 2 << 20;
const MADV_POPULATE_READ: i32 = 22;

/// A private mapping of a file of shared memory. Holes stay holes: nothing we read makes a page there.
#[derive(Debug)]
pub struct Mirror {
    start: u64,
    len: u64,
    pagemap: File,
    /// Makes the kernel refuse a page that the file lacks, instead of adding it.
    uffd: Uffd,
    /// Pages come into the mapping one by one.
    exact: bool,
}

impl Mirror {
    /// Maps the first `len` bytes of `file`, whole pages.
    pub fn new(file: &File, len: u64) -> io::Result<Mirror> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let uffd = Uffd::own(USER_MODE_ONLY)?;
        uffd.handshake(feature::SIGBUS | feature::WP | feature::WP_SHMEM)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice, which no reference ever points into.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len as usize, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mirror = Mirror { start: start as u64, len, pagemap, uffd, exact: false };
        mirror.uffd.register(mirror.start, len, mode::MISSING)?;
        // A fork of ours has no use for it.
        mirror.advise(0, len, libc::MADV_DONTFORK)?;
        Ok(mirror)
    }

    /// The parts (start, end) of `ranges` whose pages are not in the mapping: never taken in, or gone from the file since.
    pub fn absent(&self, ranges: &[(u64, u64)]) -> io::Result<Vec<(u64, u64)>> {
        let query = Query { none_of: category::PRESENT, ..Query::default() };
        let mut found = Vec::new();
        for &(start, end) in ranges {
            let regions = pagemap::find(&self.pagemap, self.start + start, self.start + end.min(self.len), query)?;
            found.extend(regions.iter().map(|region| (region.start - self.start, region.end - self.start)));
        }
        Ok(found)
    }

    /// Takes in the pages of `ranges` that the file has; the first time, others with them.
    pub fn take_in(&mut self, ranges: &[(u64, u64)]) -> io::Result<()> {
        for &(start, end) in ranges {
            for at in (start..end).step_by(STEP as usize) {
                let len = STEP.min(end - at);
                if self.advise(at, len, MADV_POPULATE_READ).is_err() {
                    // A hole ends the call: page by page then. What is not there stays absent.
                    (at..at + len).step_by(PAGE as usize).for_each(|page| drop(self.advise(page, PAGE, MADV_POPULATE_READ)));
                }
            }
        }
        if !self.exact {
            // From here on a fault must not bring its neighbours along: one that was punched out would seem to have been here all
            // the time. The kernel leaves them where a mapping can be write-protected.
            self.uffd.register(self.start, self.len, mode::MISSING | mode::WP)?;
            self.exact = true;
        }
        Ok(())
    }

    /// Reads ranges (start, end) one behind the other into all of `buf`; false where one of them has a hole.
    pub fn read(&self, ranges: &[(u64, u64)], buf: &mut [u8]) -> bool {
        let mut filled = 0;
        ranges.chunks(process_vm::MAX_RANGES).all(|group| {
            let wanted: Vec<(u64, usize)> = group.iter().map(|range| (self.start + range.0, (range.1 - range.0) as usize)).collect();
            let len: usize = wanted.iter().map(|range| range.1).sum();
            // By a system call: where a page goes while it is read, that fails and does not kill us.
            let read = process_vm::read(std::process::id() as i32, &wanted, &mut buf[filled..filled + len]);
            filled += len;
            read.is_ok_and(|read| read == len)
        })
    }

    fn advise(&self, offset: u64, len: u64, advice: i32) -> io::Result<()> {
        // SAFETY: the range lies in the mapping, into which no reference points; neither advice changes what anybody else sees.
        check(unsafe { libc::madvise((self.start + offset) as *mut libc::c_void, len as usize, advice) }.into()).map(drop)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and no reference into it exists.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.len as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn punched_pages_show_and_holes_stay_holes() {
        let file = File::from(nix::sys::memfd::memfd_create("mirror", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(64 * PAGE).unwrap();
        file.write_all_at(&[7; 32 * PAGE as usize], 0).unwrap();
        let mut mirror = Mirror::new(&file, 64 * PAGE).unwrap();
        let data = [(0, 32 * PAGE)];
        assert_eq!(mirror.absent(&data).unwrap(), data);
        let before = file.metadata().unwrap().blocks();
        mirror.take_in(&[(0, 64 * PAGE)]).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), before);
        assert_eq!(mirror.absent(&[(0, 64 * PAGE)]).unwrap(), [(32 * PAGE, 64 * PAGE)]);
        let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        nix::fcntl::fallocate(&file, punch, 8 * PAGE as i64, 2 * PAGE as i64).unwrap();
        file.write_all_at(&[0; PAGE as usize], 8 * PAGE).unwrap();
        assert_eq!(mirror.absent(&data).unwrap(), [(8 * PAGE, 10 * PAGE)]);
        // What comes back beside it does not bring it along.
        nix::fcntl::fallocate(&file, punch, 12 * PAGE as i64, PAGE as i64).unwrap();
        file.write_all_at(&[7; PAGE as usize], 12 * PAGE).unwrap();
        mirror.take_in(&[(12 * PAGE, 13 * PAGE)]).unwrap();
        assert_eq!(mirror.absent(&data).unwrap(), [(8 * PAGE, 10 * PAGE)]);
        let mut bytes = vec![0; 2 * PAGE as usize];
        assert!(mirror.read(&[(0, PAGE), (31 * PAGE, 32 * PAGE)], &mut bytes) && bytes.iter().all(|&byte| byte == 7));
        assert!(!mirror.read(&[(9 * PAGE, 10 * PAGE)], &mut bytes[..PAGE as usize]));
    }
}
