//! Another process's memory: process_vm_readv(2), process_vm_writev(2) and the futex robust list.

use std::io;

use libc::{c_void, iovec, pid_t};

use super::check;

/// The most ranges one call takes (IOV_MAX).
pub const MAX_RANGES: usize = 1024;

/// Reads `ranges` (address, length) of process `pid` one behind the other into `buf`; returns the bytes read, which stop at the first unreadable page.
pub fn read(pid: pid_t, ranges: &[(u64, usize)], buf: &mut [u8]) -> io::Result<usize> {
    let local = iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = vectors(ranges);
    // SAFETY: `local` covers exactly `buf`, which is exclusively borrowed; remote addresses are the kernel's to check.
    check(unsafe { libc::process_vm_readv(pid, &local, 1, remote.as_ptr(), remote.len() as u64, 0) } as i64).map(|n| n as usize)
}

/// Writes `buf` to `ranges` (address, length) of process `pid`; returns the bytes written.
pub fn write(pid: pid_t, ranges: &[(u64, usize)], buf: &[u8]) -> io::Result<usize> {
    let local = iovec { iov_base: buf.as_ptr() as *mut c_void, iov_len: buf.len() };
    let remote = vectors(ranges);
    // SAFETY: `local` covers exactly `buf` and is only read; remote addresses are the kernel's to check.
    check(unsafe { libc::process_vm_writev(pid, &local, 1, remote.as_ptr(), remote.len() as u64, 0) } as i64).map(|n| n as usize)
}

fn vectors(ranges: &[(u64, usize)]) -> Vec<iovec> {
    ranges.iter().map(|&(address, len)| iovec { iov_base: address as *mut c_void, iov_len: len }).collect()
}

/// The robust futex list of a thread: head address and length.
pub fn robust_list(tid: pid_t) -> io::Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: both pointers are to live locals of the size the kernel writes.
    check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &mut head, &mut len) })?;
    Ok((head, len))
}
