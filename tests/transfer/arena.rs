//! Pages of our own, read back by way of the kernel as those of any other process.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{mmap_anonymous, mprotect, munmap, MapFlags, ProtFlags};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag};
use nix::unistd::{fork, ForkResult, Pid};
use stillframe::sys::PAGE;
use stillframe::tracee::memory::Memory;

/// Private anonymous memory; unmapped when dropped.
pub struct Arena {
    start: NonNull<c_void>,
    pages: u64,
    pub memory: Memory,
}

impl Arena {
    pub fn new(pages: u64) -> Arena {
        let len = NonZeroUsize::new((pages * PAGE) as usize).unwrap();
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe { mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE) }.unwrap();
        Arena { start, pages, memory: Memory::open(std::process::id() as i32).unwrap() }
    }

    pub fn pages(&self) -> u64 {
        self.pages
    }

    pub fn address(&self, page: u64) -> u64 {
        self.start.as_ptr() as u64 + page * PAGE
    }

    /// All of it.
    pub fn range(&self) -> (u64, u64) {
        (self.address(0), self.address(self.pages))
    }

    pub fn set(&mut self, page: u64, bytes: &[u8]) {
        self.memory.write(self.address(page), bytes).unwrap();
    }

    pub fn bytes(&self, start: u64, end: u64) -> Vec<u8> {
        let mut bytes = vec![0; (end - start) as usize];
        self.memory.read(start, &mut bytes).unwrap();
        bytes
    }

    /// Another process with the same memory, but for pages that are unmapped and pages that it has no right to (first, count).
    pub fn split(&self, unmapped: &[(u64, u64)], forbidden: &[(u64, u64)]) -> Twin {
        let at = |page| NonNull::new(self.address(page) as *mut c_void).unwrap();
        // SAFETY: the child makes system calls only, on memory that is its own.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                // It stops when it is ready.
                waitpid(child, Some(WaitPidFlag::WUNTRACED)).unwrap();
                Twin { pid: child, memory: Memory::open(child.as_raw()).unwrap() }
            }
            // SAFETY: as above; it never returns from here.
            ForkResult::Child => unsafe {
                let done = unmapped.iter().try_for_each(|&(page, count)| munmap(at(page), (count * PAGE) as usize));
                let done = done.and(forbidden.iter().try_for_each(|&(page, count)| mprotect(at(page), (count * PAGE) as usize, ProtFlags::PROT_NONE)));
                libc::raise(if done.is_ok() { libc::SIGSTOP } else { libc::SIGKILL });
                libc::_exit(1)
            },
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which no reference is handed out.
        unsafe { munmap(self.start, (self.pages * PAGE) as usize) }.unwrap();
    }
}

/// A stopped copy of this process; killed when dropped.
pub struct Twin {
    pid: Pid,
    pub memory: Memory,
}

impl Drop for Twin {
    fn drop(&mut self) {
        kill(self.pid, Signal::SIGKILL).unwrap();
        waitpid(self.pid, None).unwrap();
    }
}
