//! Making processes with chosen ids.

use std::io;
use std::mem::size_of;

use libc::pid_t;

use super::check;

/// The argument block of clone3(2).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct CloneArgs {
    /// CLONE_* flags.
    pub flags: u64,
    /// Where to store a pidfd.
    pub pidfd: u64,
    /// Where the child stores its tid.
    pub child_tid: u64,
    /// Where the parent stores the child's tid.
    pub parent_tid: u64,
    /// The signal sent to the parent at exit.
    pub exit_signal: u64,
    /// Lowest address of the stack.
    pub stack: u64,
    /// Size of the stack.
    pub stack_size: u64,
    /// Thread-local storage.
    pub tls: u64,
    /// Address of an array of wanted ids, innermost pid namespace first.
    pub set_tid: u64,
    /// Its length.
    pub set_tid_size: u64,
    /// Descriptor of a cgroup.
    pub cgroup: u64,
}

impl CloneArgs {
    /// The bytes as the kernel reads them.
    pub fn as_bytes(&self) -> [u8; size_of::<CloneArgs>()] {
        // SAFETY: eleven u64, no padding.
        unsafe { std::mem::transmute(*self) }
    }
}

/// Forks a child with process id `pid` (0: any) and namespaces `flags`, which waits to be seized and dies with the caller.
pub fn blank(pid: pid_t, flags: u64) -> io::Result<pid_t> {
    let tid = pid;
    let wants = u64::from(pid != 0);
    let args = CloneArgs {
        flags,
        exit_signal: libc::SIGCHLD as u64,
        set_tid: if pid != 0 { &tid as *const _ as u64 } else { 0 },
        set_tid_size: wants,
        ..CloneArgs::default()
    };
    // SAFETY: the arguments are live; the child runs nothing but async-signal-safe system calls.
    unsafe {
        match check(libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()))? {
            0 => {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
            child => Ok(child as pid_t),
        }
    }
}

/// Forks; the child runs `body` and exits with what it returns. For short-lived single-threaded callers.
pub fn child(flags: u64, body: impl FnOnce() -> i32) -> io::Result<pid_t> {
    let args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    // SAFETY: a plain fork in namespaces; callers have a single thread at that time, so no lock is left held in the child.
    unsafe {
        match check(libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()))? {
            0 => std::process::exit(body()),
            child => Ok(child as pid_t),
        }
    }
}
