//! Descriptor calls that only the capture and the restore of descriptors need.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;
use super::fd::Plain;

// SAFETY: structs of integers: every bit pattern is valid.
unsafe impl Plain for libc::flock {}

/// What F_SETOWN_EX takes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Owner {
    /// F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP.
    pub kind: i32,
    /// The id.
    pub id: i32,
}

// SAFETY: two integers: every bit pattern is valid.
unsafe impl Plain for Owner {}

fn owned(number: libc::c_long) -> OwnedFd {
    // SAFETY: callers hand over a descriptor that the kernel has just made for them.
    unsafe { OwnedFd::from_raw_fd(number as i32) }
}

/// An fcntl whose argument is a plain number.
pub fn fcntl(fd: BorrowedFd<'_>, command: i32, argument: i32) -> io::Result<i32> {
    // SAFETY: callers use this only for commands that take a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) }.into()).map(|n| n as i32)
}

/// An fcntl that reads or fills a struct.
pub fn fcntl_with<T: Plain>(fd: BorrowedFd<'_>, command: i32, value: &mut T) -> io::Result<i32> {
    // SAFETY: the command reads or writes one T, which is live.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), command, value as *mut T) }.into()).map(|n| n as i32)
}

/// A socket option of whatever size, up to 256 bytes.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<Vec<u8>> {
    let mut value = [0u8; 256];
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the buffer is live and of the length stated.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut len) }.into())?;
    Ok(value[..len as usize].to_vec())
}

/// Sets a socket option of whatever size.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the slice is live and of the length stated.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as libc::socklen_t) }.into()).map(drop)
}

/// Makes a socket listen.
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }.into()).map(drop)
}

/// Accepts a connection.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers and null pointers for the address nobody asks for.
    check(unsafe { libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) }.into()).map(owned)
}

/// Shuts a socket down (SHUT_RD, SHUT_WR, SHUT_RDWR).
pub fn shutdown(fd: BorrowedFd<'_>, how: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), how) }.into()).map(drop)
}

/// A pair of connected unix sockets.
pub fn socketpair(kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut pair = [0; 2];
    // SAFETY: the array has room for both numbers.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()) }.into())?;
    Ok((owned(pair[0].into()), owned(pair[1].into())))
}

/// Which of `events` (POLLIN …) hold now, with POLLERR and POLLHUP.
pub fn ready(fd: BorrowedFd<'_>, events: i16) -> io::Result<i16> {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one live entry.
    check(unsafe { libc::poll(&mut entry, 1, 0) }.into())?;
    Ok(entry.revents)
}

/// Duplicates up to `len` bytes of a pipe into another; neither loses any.
pub fn tee(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    // SAFETY: plain numbers.
    check(unsafe { libc::tee(from.as_raw_fd(), to.as_raw_fd(), len, libc::SPLICE_F_NONBLOCK) } as i64).map(|n| n as usize)
}

/// Makes a timerfd.
pub fn timer(clock: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    check(unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) }.into()).map(owned)
}

/// Arms a timerfd.
pub fn arm_timer(fd: BorrowedFd<'_>, flags: i32, at: &libc::itimerspec) -> io::Result<()> {
    // SAFETY: the struct is live; the old value is not asked for.
    check(unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, at, std::ptr::null_mut()) }.into()).map(drop)
}

/// The time left of a timerfd, and its interval.
pub fn timer_left(fd: BorrowedFd<'_>) -> io::Result<libc::itimerspec> {
    let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let mut left = libc::itimerspec { it_interval: zero, it_value: zero };
    // SAFETY: the struct is live.
    check(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &mut left) }.into())?;
    Ok(left)
}

/// A clock's time.
pub fn clock(id: i32) -> io::Result<libc::timespec> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is live.
    check(unsafe { libc::clock_gettime(id, &mut now) }.into())?;
    Ok(now)
}

/// Makes a signalfd for the signals of `mask`.
pub fn signals(mask: u64) -> io::Result<OwnedFd> {
    // SAFETY: the mask is live and of the size stated.
    check(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &mask, 8usize, libc::SFD_CLOEXEC) }).map(owned)
}

/// Makes an inotify instance.
pub fn watcher() -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    check(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) }.into()).map(owned)
}

/// Adds a watch to an inotify instance; returns its descriptor.
pub fn watch(fd: BorrowedFd<'_>, path: &CStr, mask: u32) -> io::Result<i32> {
    // SAFETY: the string is live.
    check(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) }.into()).map(|n| n as i32)
}

/// The handle (kind, bytes) by which its file system finds an open file again, name or no name.
pub fn handle_of(fd: BorrowedFd<'_>) -> io::Result<(i32, Vec<u8>)> {
    const MAX: usize = 128;
    let mut raw = [0u32; 2 + MAX / 4];
    raw[0] = MAX as u32;
    let mut mount = 0;
    // SAFETY: `raw` is a file_handle with room for the bytes it states; the path is an empty C string.
    check(unsafe { libc::syscall(libc::SYS_name_to_handle_at, fd.as_raw_fd(), c"".as_ptr(), raw.as_mut_ptr(), &mut mount, libc::AT_EMPTY_PATH) })?;
    let bytes: Vec<u8> = raw[2..].iter().flat_map(|word| word.to_ne_bytes()).take(raw[0] as usize).collect();
    Ok((raw[1] as i32, bytes))
}

/// Opens (O_PATH) the file that a handle names in the file system of `mount`.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
    let mut raw = vec![0u32; 2 + handle.len().div_ceil(4)];
    (raw[0], raw[1]) = (handle.len() as u32, kind as u32);
    for (word, bytes) in raw[2..].iter_mut().zip(handle.chunks(4)) {
        let mut four = [0; 4];
        four[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_ne_bytes(four);
    }
    // SAFETY: `raw` is a file_handle: two words of header, then the number of bytes that the first states.
    check(unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), raw.as_mut_ptr(), libc::O_PATH | libc::O_CLOEXEC) }).map(owned)
}

/// Opens the other side of a pseudo terminal's master.
pub fn peer_terminal(master: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: the request takes a number and returns a new descriptor.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags | libc::O_NOCTTY | libc::O_CLOEXEC) }.into()).map(owned)
}

/// A process descriptor (`flags`: PIDFD_THREAD) of a child that is dead and gone.
pub fn dead_process(flags: u32) -> io::Result<OwnedFd> {
    let pid = super::clone::child(0, || 0)?;
    // SAFETY: plain numbers; the child is ours and not yet waited for, so the id is still its own.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) }).map(owned);
    // SAFETY: waits for our own child and asks for no status.
    check(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }.into())?;
    fd
}

/// Locks a whole file (LOCK_SH, LOCK_EX) without waiting.
pub fn flock(fd: BorrowedFd<'_>, operation: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::flock(fd.as_raw_fd(), operation | libc::LOCK_NB) }.into()).map(drop)
}
