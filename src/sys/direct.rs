//! What writing past the page cache takes: memory that the disk reads in large pieces, and where the cache cannot be passed by,
//! a say in when it is written back.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::ptr::{null_mut, NonNull};

use super::check;

const HUGE: usize = 2 << 20;

/// Zeroed memory of our own that starts at a page, and lies in huge pages where it is large enough and the kernel grants them.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the buffer alone, whichever thread holds it.
unsafe impl Send for Buffer {}

impl Buffer {
    /// `len` bytes, a multiple of 4096. Memory is taken as it is first touched.
    pub fn new(len: usize) -> io::Result<Buffer> {
        // With room to start at a huge page; what lies before and behind it is given back.
        let slack = if len >= HUGE { HUGE } else { 0 };
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let mapped = unsafe { libc::mmap(null_mut(), len + slack, prot, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = if slack == 0 { 0 } else { (mapped as usize).next_multiple_of(HUGE) - mapped as usize };
        // SAFETY: both ends lie inside the fresh mapping and outside of what the buffer keeps; advice changes no content.
        let start = unsafe {
            let start = mapped.cast::<u8>().add(before);
            if before > 0 {
                libc::munmap(mapped, before);
            }
            if slack > before {
                libc::munmap(start.add(len).cast(), slack - before);
            }
            if slack > 0 {
                // Refused where the kernel has no huge pages; small ones will do.
                libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
            }
            start
        };
        NonNull::new(start).map(|start| Buffer { start, len }).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped and initialised (with zeros) as long as the buffer lives, and borrowed with it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives us.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Makes the kernel start to write `len` bytes from `at` to the disk.
pub fn start_writeback(file: &File, at: u64, len: u64) -> io::Result<()> {
    writeback(file, at, len, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes `len` bytes from `at` to the disk and waits for that; says nothing of the disk's own cache, nor of the file's length.
pub fn finish_writeback(file: &File, at: u64, len: u64) -> io::Result<()> {
    writeback(file, at, len, libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER)
}

fn writeback(file: &File, at: u64, len: u64, flags: u32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::sync_file_range(file.as_raw_fd(), at as i64, len as i64, flags) }.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_hold_what_is_put_in() {
        for len in [4096, 1 << 20, HUGE, 2 * HUGE, HUGE + 4096] {
            let mut buffer = Buffer::new(len).unwrap();
            let unit = if len >= HUGE { HUGE } else { 4096 };
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % unit), (len, 0));
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(7);
            assert_eq!((buffer[0], buffer[len - 1]), (7, 7));
        }
    }
}
