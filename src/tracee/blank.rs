//! A blank process: born stopped, traced, with a chosen id and hardly any memory; a restore fills it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::memory::Memory;
use super::{follow_clone, run_call, to_syscall_stop, Remote, RemoteExt};
use crate::arch::{self, vdso, Registers};
use crate::error::{Error, Kind, Result};
use crate::proc::{self, maps, maps::Vma, Pid};
use crate::sys::clone::{self, CloneArgs};
use crate::sys::ptrace::{self, Event};

/// Size of the scratch area for the arguments of injected calls, in bytes.
pub const SCRATCH_LEN: u64 = 1 << 20;

/// A stopped thread that runs nothing but our calls.
pub struct Blank {
    /// Its thread id.
    pub tid: Pid,
    /// Its process id.
    pub pid: Pid,
    template: Registers,
    site: u64,
    scratch: u64,
    used: u64,
    service: i32,
    memory: Memory,
}

const OPTIONS: i32 = ptrace::EXIT_KILL | ptrace::SYSGOOD | ptrace::FOLLOW_CLONES;

impl Blank {
    /// Forks a blank child of ours with process id `pid`.
    pub fn spawn(pid: Pid) -> Result<Blank> {
        let child = clone::blank(pid, 0).map_err(|e| explain(pid, e))?;
        let stopped = (|| {
            ptrace::seize(child, OPTIONS)?;
            ptrace::interrupt(child)?;
            wait_born(child)
        })();
        stopped.map_err(|e| Error::io(format!("cannot take hold of the new process {child}"), e))?;
        let memory = Memory::open(child)?;
        let maps = maps::read(&proc::path(child, "maps"))?;
        let site = syscall_site(&memory, &maps)?;
        let template = ptrace::regs(child).map_err(|e| Error::io(format!("cannot read the registers of {child}"), e))?;
        Ok(Blank { tid: child, pid: child, template, site, scratch: 0, used: 0, service: -1, memory })
    }

    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Moves the vDSO, `len` bytes, to another address; the calls that we inject follow it there.
    pub fn move_vdso(&mut self, from: u64, to: u64, len: u64) -> Result<()> {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        self.must("move the vDSO", libc::SYS_mremap, [from, len, len, flags, to, 0])?;
        self.site = self.site - from + to;
        Ok(())
    }

    /// Where the restorer's own pidfd is among its descriptors.
    pub fn set_service(&mut self, fd: i32) {
        self.service = fd;
    }

    /// Gives it a duplicate of our descriptor `fd`, close-on-exec; returns the number.
    pub fn borrow(&mut self, fd: BorrowedFd<'_>) -> Result<u64> {
        self.must("take over a descriptor", libc::SYS_pidfd_getfd, [self.service as u64, fd.as_raw_fd() as u64, 0, 0, 0, 0])
    }

    /// Maps the scratch area at `address`, which must be free.
    pub fn map_scratch(&mut self, address: u64) -> Result<()> {
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        self.scratch = self.must("map scratch memory", libc::SYS_mmap, [address, SCRATCH_LEN, prot, flags, u64::MAX, 0])?;
        Ok(())
    }

    /// Unmaps the scratch area.
    pub fn unmap_scratch(&mut self) -> Result<()> {
        let scratch = std::mem::take(&mut self.scratch);
        self.must("unmap scratch memory", libc::SYS_munmap, [scratch, SCRATCH_LEN, 0, 0, 0, 0]).map(drop)
    }

    /// Copies `bytes` to scratch memory, valid for the next call; returns their address.
    pub fn put(&mut self, bytes: &[u8]) -> Result<u64> {
        let len = (bytes.len() as u64 + 15) & !15;
        if self.scratch == 0 || len > SCRATCH_LEN {
            return Err(Error::new(Kind::Io, format!("pid {}: {} bytes of arguments do not fit the scratch area", self.pid, bytes.len())));
        }
        if self.used + len > SCRATCH_LEN {
            self.used = 0;
        }
        let address = self.scratch + self.used;
        self.used += len;
        self.memory.write(address, bytes)?;
        Ok(address)
    }

    /// Like `put`, for a C string.
    pub fn put_str(&mut self, text: &[u8]) -> Result<u64> {
        self.put(&[text, &[0]].concat())
    }

    /// Makes it fork a child with id `pid`, `flags` (CLONE_*) and `exit_signal`.
    pub fn fork(&mut self, pid: Pid, flags: u64, exit_signal: i32) -> Result<Blank> {
        let born = self.clone3(pid, CloneArgs { flags, exit_signal: exit_signal as u64, ..CloneArgs::default() })?;
        Ok(Blank { tid: born, pid: born, memory: Memory::open(born)?, ..*self })
    }

    /// Makes it start a thread with id `tid`.
    pub fn thread(&mut self, tid: Pid) -> Result<Blank> {
        let flags = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
        let born = self.clone3(tid, CloneArgs { flags: flags as u64, ..CloneArgs::default() })?;
        Ok(Blank { tid: born, pid: self.pid, memory: Memory::open(self.pid)?, ..*self })
    }

    fn clone3(&mut self, id: Pid, mut args: CloneArgs) -> Result<Pid> {
        if id != 0 {
            args.set_tid = self.put(&id.to_ne_bytes())?;
            args.set_tid_size = 1;
        }
        let at = self.put(&args.as_bytes())?;
        let size = std::mem::size_of::<CloneArgs>() as u64;
        let mut regs = self.template;
        arch::load_call(&mut regs, self.site, libc::SYS_clone3, &[at, size, 0, 0, 0, 0]);
        // The new task starts with the caller's stack pointer, which points nowhere; it never uses it.
        let born = (|| {
            ptrace::set_regs(self.tid, &regs)?;
            let born = follow_clone(self.tid, &mut Vec::new())?;
            to_syscall_stop(self.tid, &mut Vec::new())?;
            Ok(born)
        })();
        born.map_err(|e| explain(id, e))
    }

    /// Lets it run once until it exits.
    pub fn finish(mut self, number: i64, args: [u64; 6]) -> Result<()> {
        match self.call(number, args) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            Err(e) => Err(Error::io(format!("pid {}: cannot end it", self.pid), e)),
            Ok(_) => Err(Error::new(Kind::Io, format!("pid {} did not exit", self.pid))),
        }
    }
}

impl Remote for Blank {
    fn pid(&self) -> Pid {
        self.pid
    }

    fn call(&mut self, number: i64, args: [u64; 6]) -> io::Result<u64> {
        // Signals to a blank process (SIGCHLD of a zombie being made) are not the program's: drop them.
        run_call(self.tid, &self.template, self.site, number, args, &mut Vec::new())
    }
}

fn wait_born(tid: Pid) -> io::Result<()> {
    loop {
        match ptrace::wait(tid, true)? {
            Some(Event::Stop) => return Ok(()),
            Some(Event::Gone(_)) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            _ => ptrace::cont(tid, 0)?,
        }
    }
}

fn syscall_site(memory: &Memory, maps: &[Vma]) -> Result<u64> {
    let vma = maps.iter().find(|vma| vma.name == "[vdso]").ok_or_else(|| Error::refused("this kernel maps no vDSO; boot without vdso=0"))?;
    let mut image = vec![0; vma.len() as usize];
    memory.read(vma.start, &mut image)?;
    let site = vdso::syscall_site(&image).ok_or_else(|| Error::refused("this kernel's vDSO holds no syscall instruction"))?;
    Ok(vma.start + site)
}

fn explain(pid: Pid, e: io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::EEXIST) => {
            let name = proc::text(&proc::path(pid, "comm")).unwrap_or_default();
            let state = proc::stat::read(pid).map_or("", |stat| if stat.is_zombie() { ", a zombie that its parent has not reaped" } else { "" });
            Error::refused(format!("pid {pid} is in use by {:?}{state}; end that process, or restore with --isolate", name.trim()))
        }
        Some(libc::EPERM) => Error::new(Kind::Privilege, format!("cannot create a process with id {pid}: that needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN (root)")),
        Some(libc::EINVAL) => Error::refused(format!("pid {pid} cannot exist here: it is above kernel.pid_max, or this pid namespace has no init; raise it or use --isolate")),
        _ => Error::io(format!("cannot create process {pid}"), e),
    }
}
