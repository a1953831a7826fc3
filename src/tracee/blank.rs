//! A blank process: born stopped, traced, with a chosen id and hardly any memory; a restore fills it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

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

/// Where a blank process makes its calls from.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    site: u64,
    scratch: u64,
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
        let mut blank = Blank { tid: child, pid: child, template, site, scratch: 0, used: 0, service: -1, memory };
        blank.forget_rseq()?;
        Ok(blank)
    }

    /// Our own C library's registration, inherited: the kernel would write to memory that is about to go.
    fn forget_rseq(&mut self) -> Result<()> {
        const UNREGISTER: u64 = 1;
        let rseq = ptrace::rseq(self.tid).map_err(|e| Error::io(format!("cannot read the rseq area of {}", self.tid), e))?;
        if rseq.address != 0 {
            self.must("unregister rseq", libc::SYS_rseq, [rseq.address, u64::from(rseq.size), UNREGISTER, u64::from(rseq.signature), 0, 0])?;
        }
        Ok(())
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

    /// Maps a scratch area wherever there is room, for the calls that breed a family.
    pub fn map_first_scratch(&mut self) -> Result<()> {
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        self.scratch = self.must("map scratch memory", libc::SYS_mmap, [0, SCRATCH_LEN, prot, flags, u64::MAX, 0])?;
        Ok(())
    }

    /// Closes every descriptor but `service`, the restorer's pidfd.
    pub fn keep_only(&mut self, service: i32) -> Result<()> {
        self.service = service;
        let service = service as u64;
        if service > 0 {
            self.must("close inherited descriptors", libc::SYS_close_range, [0, service - 1, 0, 0, 0, 0])?;
        }
        self.must("close inherited descriptors", libc::SYS_close_range, [service + 1, u64::from(u32::MAX), 0, 0, 0, 0]).map(drop)
    }

    /// Keeps seccomp filters from judging the calls that we inject, until the thread is let go.
    pub fn suspend_seccomp(&self) -> Result<()> {
        ptrace::set_options(self.tid, OPTIONS | ptrace::SUSPEND_SECCOMP).map_err(|e| Error::io(format!("pid {}: cannot suspend seccomp (needs CAP_SYS_ADMIN)", self.pid), e))
    }

    /// Holds back all signals until the final registers come.
    pub fn block_signals(&self) -> Result<()> {
        ptrace::set_sigmask(self.tid, !0).map_err(|e| Error::io(format!("cannot hold back the signals of {}", self.tid), e))
    }

    /// Where its calls are made from, for processes that share its memory.
    pub fn place(&self) -> Place {
        Place { site: self.site, scratch: self.scratch }
    }

    /// Takes over where calls are made from.
    pub fn set_place(&mut self, place: Place) {
        (self.site, self.scratch, self.used) = (place.site, place.scratch, 0);
    }

    /// The restorer's pidfd among its descriptors.
    pub fn service(&self) -> i32 {
        self.service
    }

    /// Dies so that its parent reads wait status `status`.
    pub fn die(mut self, status: i32) -> Result<()> {
        let signal = status & 0x7f;
        if signal == 0 {
            return self.finish(libc::SYS_exit_group, [(status >> 8) as u64 & 0xff, 0, 0, 0, 0, 0]);
        }
        // All zero: the default action, no flags, no mask.
        self.map_scratch_anew()?;
        let action = self.put(&[0; 32])?;
        self.must("reset a signal", libc::SYS_rt_sigaction, [signal as u64, action, 0, 8, 0, 0]).or_else(|e| if signal == libc::SIGKILL { Ok(0) } else { Err(e) })?;
        let none = self.put(&[0; 16])?;
        self.must("forbid a core dump", libc::SYS_setrlimit, [libc::RLIMIT_CORE as u64, none, 0, 0, 0, 0])?;
        let died = (|| {
            ptrace::set_sigmask(self.tid, 0)?;
            ptrace::cont(self.tid, signal)?;
            while !matches!(ptrace::wait(self.tid, true)?, Some(Event::Gone(_))) {
                ptrace::cont(self.tid, signal)?;
            }
            Ok(())
        })();
        died.map_err(|e: io::Error| Error::io(format!("pid {}: cannot die of signal {signal}", self.pid), e))
    }

    /// A zombie's blank kept the scratch area it was born with, if its forker had one.
    fn map_scratch_anew(&mut self) -> Result<()> {
        if self.scratch == 0 {
            self.map_first_scratch()?;
        }
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

    /// Ends it with all its threads; whoever waits for our children reaps it.
    pub fn kill(&self) {
        // It may be dead already.
        let _ = crate::sys::pidfd::open(self.pid).and_then(|fd| crate::sys::pidfd::send_signal(fd.as_fd(), libc::SIGKILL));
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
        Some(libc::EEXIST) => in_use(pid),
        Some(libc::EPERM) => Error::new(Kind::Privilege, format!("cannot create a process with id {pid}: that needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN (root)")),
        Some(libc::EINVAL) => Error::refused(format!("pid {pid} cannot exist here: it is above kernel.pid_max, or this pid namespace has no init; raise it or use --isolate")),
        _ => Error::io(format!("cannot create process {pid}"), e),
    }
}

/// Whether some task has this id, be it a process, a thread, a group or a session.
pub fn exists(id: Pid) -> bool {
    let signal = |pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) != Err(nix::Error::ESRCH);
    id > 0 && (proc::path(id, "comm").exists() || signal(id) || signal(-id))
}

/// Whether the id will be free soon: a zombie's, or one that was given up between two looks.
pub fn is_dying(id: Pid) -> bool {
    proc::stat::read(id).map_or_else(|_| !exists(id), |stat| stat.is_zombie())
}

/// The refusal for an id that somebody has.
pub fn in_use(pid: Pid) -> Error {
    let name = proc::text(&proc::path(pid, "comm")).unwrap_or_default();
    let why = match proc::stat::read(pid) {
        Ok(stat) if stat.is_zombie() => format!("the zombie of {:?}, which its parent {} has not reaped", name.trim(), stat.ppid),
        Ok(_) => format!("{:?}", name.trim()),
        Err(_) => "a process group or session".to_owned(),
    };
    Error::refused(format!("pid {pid} is in use by {why}; end that process, or restore with --isolate"))
}
