//! A shared anonymous mapping of our own, which other processes can map too by way of /proc/self/map_files.

use std::fs::{File, OpenOptions};
use std::io;

/// Shared anonymous memory; unmapped when dropped.
pub struct Shared {
    start: *mut libc::c_void,
    len: usize,
}

impl Shared {
    /// Maps `len` bytes of zeros, a multiple of the page size.
    pub fn new(len: u64) -> io::Result<Shared> {
        let len = len as usize;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Shared { start, len })
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
