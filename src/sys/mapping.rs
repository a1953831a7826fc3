//! A shared anonymous mapping of our own, which other processes can map too by way of /proc/self/map_files.

use std::fs::{File, OpenOptions};
use std::io;

/// Shared anonymous memory; unmapped when dropped.
pub struct Shared {
    start: *mut libc::c_void,
    len: usize,
}

impl Shared {
    /// Maps `len` bytes of zeros, a multiple of `page_size`, which is 4096 or the size of an explicit huge page.
    pub fn new(len: u64, page_size: u64) -> io::Result<Shared> {
        let len = len as usize;
        let huge = if page_size == super::PAGE { 0 } else { libc::MAP_HUGETLB | (page_size.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT };
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS | huge, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Shared { start, len })
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// Copies `bytes` to `offset`; for memory that write(2) does not reach.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let offset = offset as usize;
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        // SAFETY: the range lies inside our mapping, which nobody else has yet; `bytes` is no part of it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.cast::<u8>().add(offset), bytes.len()) };
        Ok(())
    }

    /// The file behind it, for others to map.
    pub fn file(&self) -> io::Result<File> {
        let start = self.start as usize;
        OpenOptions::new().read(true).write(true).open(format!("/proc/self/map_files/{start:x}-{:x}", start + self.len))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it exists.
        unsafe { libc::munmap(self.start, self.len) };
    }
}
