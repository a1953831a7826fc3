//! Process descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::pid_t;

use super::check;

/// A descriptor that stands for process `pid`.
pub fn open(pid: pid_t) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers in; on success the returned descriptor is new and ours.
    unsafe { check(libc::syscall(libc::SYS_pidfd_open, pid, 0)).map(|fd| OwnedFd::from_raw_fd(fd as i32)) }
}

/// A duplicate of descriptor `fd` of the process behind `pidfd`; both share one open file description.
pub fn get(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers in; on success the returned descriptor is new and ours.
    unsafe { check(libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0)).map(|fd| OwnedFd::from_raw_fd(fd as i32)) }
}

/// Sends `signal` to the process behind `pidfd`.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers and a null siginfo.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0usize, 0) }).map(drop)
}

/// Sends `signal` to exactly one thread of a process.
pub fn tgkill(pid: pid_t, tid: pid_t, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}
