//! kcmp(2): do two processes share a kernel object?

use std::cmp::Ordering;
use std::io;

use libc::pid_t;

use super::check;

/// What to compare.
#[derive(Debug, Clone, Copy)]
pub enum Object {
    /// Address space.
    Memory = 1,
    /// Descriptor table.
    Files = 2,
    /// Working directory, root and umask.
    Fs = 3,
    /// Signal handlers.
    Handlers = 4,
}

const KCMP_FILE: i32 = 0;

fn kcmp(a: pid_t, b: pid_t, kind: i32, x: u64, y: u64) -> io::Result<Ordering> {
    // SAFETY: all arguments are plain numbers.
    match check(unsafe { libc::syscall(libc::SYS_kcmp, a, b, kind, x, y) })? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        _ => Ok(Ordering::Greater),
    }
}

/// Whether processes `a` and `b` share `object`.
pub fn shares(a: pid_t, b: pid_t, object: Object) -> io::Result<bool> {
    Ok(kcmp(a, b, object as i32, 0, 0)? == Ordering::Equal)
}

/// A total order on open file descriptions; equal means the same description.
pub fn files(a: (pid_t, i32), b: (pid_t, i32)) -> io::Result<Ordering> {
    kcmp(a.0, b.0, KCMP_FILE, a.1 as u64, b.1 as u64)
}

const KCMP_EPOLL_TFD: i32 = 7;

#[repr(C)]
struct EpollSlot {
    efd: u32,
    tfd: u32,
    toff: u32,
}

/// Whether descriptor `fd` of process `pid` is the file that epoll set `epfd` of process `owner` watches as its `nth` entry numbered `watched`.
pub fn is_epoll_target(pid: pid_t, fd: i32, owner: pid_t, epfd: i32, watched: i32, nth: u32) -> io::Result<bool> {
    let slot = EpollSlot { efd: epfd as u32, tfd: watched as u32, toff: nth };
    Ok(kcmp(pid, owner, KCMP_EPOLL_TFD, fd as u64, &slot as *const _ as u64)? == Ordering::Equal)
}
