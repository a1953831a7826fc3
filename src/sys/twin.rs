//! A twin of our own process: a child that holds our memory as of one instant and runs no code of the program.
//!
//! It answers three things, by plain system calls in a loop: pages it need not hold any longer are dropped, pages that we may not
//! read are written to a pipe, and it ends when asked to, or when we end. It is born without an exit signal, so that no `wait`
//! of the program sees it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{c_long, pid_t};

use super::clone::CloneArgs;
use super::{check, pidfd, process_vm};

/// A twin; it ends when this is dropped, and is waited for.
#[derive(Debug)]
pub struct Twin {
    pid: pid_t,
    handle: OwnedFd,
    orders: File,
    /// Where it writes pages.
    pages: File,
    /// Its memory may not be read from outside: ptrace is restricted, or the program is not dumpable.
    closed: AtomicBool,
}

/// With the length of an order: write it to the pipe, instead of dropping it.
const WRITE: u64 = 1 << 63;

impl Twin {
    /// Splits one off. `ourselves` is a descriptor of our own process, at whose end the twin ends.
    pub fn split(ourselves: BorrowedFd<'_>) -> io::Result<Twin> {
        let (orders, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let (reader, pages) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let mut handle: i32 = -1;
        let args = CloneArgs {
            flags: libc::CLONE_PIDFD as u64,
            pidfd: &mut handle as *mut i32 as u64,
            ..CloneArgs::default()
        };
        let mask = block_all()?;
        // SAFETY: the arguments are live; the child gets a copy of this stack and never leaves `hold`.
        let pid = unsafe {
            let mut pid = libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>());
            // Sandboxes that cannot look into its arguments forbid the newer call.
            if pid < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
                pid = libc::syscall(libc::SYS_clone, args.flags, 0usize, args.pidfd, 0usize, 0usize);
            }
            if pid == 0 {
                hold(orders.as_raw_fd(), ourselves.as_raw_fd(), pages.as_raw_fd());
            }
            pid
        };
        let failed = check(pid);
        restore_mask(&mask);
        let pid = failed? as pid_t;
        // SAFETY: the kernel has just put a new descriptor there, which is nobody else's.
        let handle = unsafe { std::os::fd::FromRawFd::from_raw_fd(handle) };
        Ok(Twin { pid, handle, orders: writer.into(), pages: reader.into(), closed: AtomicBool::new(false) })
    }

    /// Its process id.
    pub fn pid(&self) -> pid_t {
        self.pid
    }

    /// Fills `buf` from its memory; returns the bytes read, which stop at the first page that it does not have.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> io::Result<usize> {
        if !self.closed.load(Ordering::Relaxed) {
            match process_vm::read(self.pid, &[(address, buf.len())], buf) {
                Err(e) if e.raw_os_error() == Some(libc::EPERM) => self.closed.store(true, Ordering::Relaxed),
                done => return done,
            }
        }
        self.ask(address, buf)
    }

    /// Has it write its pages to the pipe; at the first that it does not have, it ends.
    fn ask(&self, address: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.order(address, buf.len() as u64 | WRITE)?;
        let mut done = 0;
        while done < buf.len() {
            match (&self.pages).read(&mut buf[done..]) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn order(&self, start: u64, what: u64) -> io::Result<()> {
        let mut order = [0u8; 16];
        order[..8].copy_from_slice(&start.to_ne_bytes());
        order[8..].copy_from_slice(&what.to_ne_bytes());
        (&self.orders).write_all(&order)
    }

    /// Lets it drop whole pages that have been read, so that whoever writes to them next need not copy them.
    pub fn release(&self, start: u64, len: u64) {
        // A twin that hears nothing holds its pages a little longer, no more.
        let _ = self.order(start, len);
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = pidfd::send_signal(self.handle.as_fd(), libc::SIGKILL);
        // SAFETY: the kernel fills a live siginfo; a child that somebody else waited for is gone all the same.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            while libc::waitid(libc::P_PIDFD, self.handle.as_raw_fd() as u32, &mut info, libc::WEXITED | libc::__WALL) < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {}
        }
    }
}

/// Blocks every signal in this thread; returns what was blocked before.
pub fn block_all() -> io::Result<libc::sigset_t> {
    // SAFETY: both sets are live and of the type the call expects.
    unsafe {
        let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        match libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before) {
            0 => Ok(before),
            e => Err(io::Error::from_raw_os_error(e)),
        }
    }
}

/// Puts back what [`block_all`] returned.
pub fn restore_mask(mask: &libc::sigset_t) {
    // SAFETY: the set is live.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// All that ever runs in a twin: system calls, with all signals blocked.
///
/// # Safety
///
/// To be called in a fresh child only: it closes every descriptor but the three.
unsafe fn hold(orders: i32, parent: i32, pages: i32) -> ! {
    // SAFETY: the calls below concern this child alone, and their pointers lead to locals of this function.
    let call = |nr: c_long, a: c_long, b: c_long, c: c_long| unsafe { libc::syscall(nr, a, b, c, 0, 0, 0) };
    // Descriptors of the program must not be held open here, but for these three.
    let mut kept = [orders, parent, pages];
    kept.sort_unstable();
    let mut from = 0;
    for fd in kept.map(c_long::from) {
        if from < fd {
            call(libc::SYS_close_range, from, fd - 1, 0);
        }
        from = fd + 1;
    }
    call(libc::SYS_close_range, from, c_long::from(u32::MAX), 0);
    call(libc::SYS_prctl, libc::PR_SET_NAME.into(), c"stillframe-twin".as_ptr() as c_long, 0);
    loop {
        let mut watched = [orders, parent].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        call(libc::SYS_ppoll, watched.as_mut_ptr() as c_long, 2, 0);
        let mut order = [0u64; 2];
        let ended = watched[1].revents != 0;
        if ended || (watched[0].revents != 0 && call(libc::SYS_read, orders.into(), order.as_mut_ptr() as c_long, 16) != 16) {
            call(libc::SYS_exit_group, 0, 0, 0);
        }
        let [mut at, what] = order;
        let end = at.wrapping_add(what & !WRITE);
        if what & WRITE == 0 {
            call(libc::SYS_madvise, at as c_long, what as c_long, libc::MADV_DONTNEED.into());
        }
        while what & WRITE != 0 && at < end {
            match call(libc::SYS_write, pages.into(), at as c_long, (end - at) as c_long) {
                written if written > 0 => at += written as u64,
                _ => at = call(libc::SYS_exit_group, 0, 0, 0) as u64,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::Owned;
    use crate::sys::PAGE;

    fn ourselves() -> OwnedFd {
        pidfd::open(std::process::id() as pid_t).unwrap()
    }

    #[test]
    fn a_twin_holds_memory_as_it_was_and_drops_what_it_need_not_hold() {
        let mut memory = Owned::new(4 * PAGE).unwrap();
        memory.fill(1);
        let us = ourselves();
        let twin = Twin::split(us.as_fd()).unwrap();
        memory.fill(2);
        let mut seen = vec![0; 4 * PAGE as usize];
        assert_eq!(twin.read(memory.address(), &mut seen).unwrap(), seen.len());
        assert!(seen.iter().all(|&byte| byte == 1));
        twin.release(memory.address(), PAGE);
        let give_up = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while seen[0] != 0 {
            assert!(std::time::Instant::now() < give_up, "the twin does not drop its page");
            twin.read(memory.address(), &mut seen).unwrap();
        }
        assert_eq!((seen[PAGE as usize], memory[0]), (1, 2));
    }

    #[test]
    fn a_twin_that_may_not_be_read_writes_its_pages() {
        let mut memory = Owned::new(300 * PAGE).unwrap();
        memory.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 7) as u8);
        let expected = memory.to_vec();
        let us = ourselves();
        let twin = Twin::split(us.as_fd()).unwrap();
        memory.fill(0);
        twin.closed.store(true, Ordering::Relaxed);
        let mut seen = vec![0; expected.len()];
        assert_eq!(twin.read(memory.address(), &mut seen).unwrap(), seen.len());
        assert!(seen == expected);
        twin.release(memory.address(), PAGE);
        assert_eq!(twin.read(memory.address() + 5, &mut seen[..PAGE as usize]).unwrap(), PAGE as usize);
        assert!(seen[..PAGE as usize - 5].iter().all(|&byte| byte == 0) && seen[PAGE as usize - 5..PAGE as usize] == expected[PAGE as usize..PAGE as usize + 5]);
        assert_eq!(twin.read(0, &mut seen[..10]).unwrap(), 0);
    }

    #[test]
    fn no_wait_of_the_program_sees_a_twin_and_no_descriptor_stays_open_in_it() {
        let us = ourselves();
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let twin = Twin::split(us.as_fd()).unwrap();
        drop(writer);
        // The end of file comes only when nobody holds the writing end.
        assert_eq!(std::io::Read::read(&mut File::from(reader), &mut [0; 1]).unwrap(), 0);
        let pid = twin.pid();
        drop(twin);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(process_vm::read(pid, &[(0, 1)], &mut [0]).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
