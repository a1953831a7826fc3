//! A stopped thread of a live target makes system calls for us, and goes home by itself should we die meanwhile.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use super::chorus::{self, Answers};
use super::memory::Memory;
use super::seize::Thread;
use super::{run_call, to_syscall_stop, Remote, RemoteExt};
use crate::arch::{self, stub, vdso};
use crate::error::{Error, Result};
use crate::proc::{self, maps::Vma, status::Status, Pid};
use crate::sys::{pidfd, ptrace, PAGE};

/// Where in a target's vDSO stubs can live: behind its code, where nothing else is.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// Address for a call stub; other stubs follow it.
    base: u64,
    /// How many bytes there are.
    room: usize,
}

/// How many bytes there must be.
const ROOM: usize = 2 * stub::MAX_LEN;
const SCRATCH_LEN: u64 = 4 * PAGE;

impl Site {
    /// Finds the place in a target with these mappings.
    pub fn find(pid: Pid, maps: &[Vma]) -> Result<Site> {
        let own = own_vdso()?;
        let vma = maps.iter().find(|vma| vma.name == "[vdso]").ok_or_else(|| {
            Error::refused(format!("pid {pid} has no vDSO (vdso=0 on the kernel's command line?), so there is no place to inject system calls"))
        })?;
        let offset = vdso::padding(own, ROOM).filter(|_| vma.len() == own.len() as u64);
        let offset = offset.ok_or_else(|| Error::refused(format!("pid {pid}: its vDSO has no {ROOM} bytes of padding for our calls")))?;
        Ok(Site { base: vma.start + offset, room: own.len() - offset as usize })
    }

    /// Whether an instruction pointer lies in a stub: of a checkpointer that was killed, its thread on the way home.
    pub fn contains(&self, rip: u64) -> bool {
        (self.base..self.base + self.room as u64).contains(&rip)
    }

    /// Address and length of what is left behind a call stub.
    pub(super) fn behind_call(&self) -> (u64, usize) {
        (self.base + stub::CALL_LEN as u64, self.room - stub::CALL_LEN)
    }
}

/// Our own vDSO: the same kernel gives every process the same bytes, and ours hold no leftover stub.
fn own_vdso() -> Result<&'static [u8]> {
    static OWN: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(image) = OWN.get() {
        return Ok(image);
    }
    let pid = std::process::id() as Pid;
    let maps = proc::maps::read(&proc::path(pid, "maps"))?;
    let vma = maps.iter().find(|vma| vma.name == "[vdso]").ok_or_else(|| Error::refused("this kernel maps no vDSO; boot without vdso=0"))?;
    let mut image = vec![0; vma.len() as usize];
    Memory::open(pid)?.read(vma.start, &mut image)?;
    Ok(OWN.get_or_init(|| image))
}

/// A thread at our service until the visit ends.
pub struct Visit<'a> {
    pid: Pid,
    thread: &'a mut Thread,
    memory: Memory,
    site: Site,
    stub: stub::Stub,
    scratch: u64,
}

impl<'a> Visit<'a> {
    /// Puts the stub in place and holds back signals.
    pub fn begin(pid: Pid, thread: &'a mut Thread, site: Site) -> Result<Visit<'a>> {
        let memory = Memory::open(thread.tid)?;
        let stub = stub::call(site.base, &thread.regs, thread.sigmask);
        memory.force(site.base, &stub.bytes)?;
        let visit = Visit { pid, thread, memory, site, stub, scratch: 0 };
        enter(visit.thread, &visit.stub, !0).map_err(|e| Error::io(format!("pid {pid}: cannot prepare thread {} for a call", visit.thread.tid), e))?;
        Ok(visit)
    }


    /// The target's memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The thread that works for us.
    pub fn thread(&mut self) -> &mut Thread {
        self.thread
    }

    /// Address of a few pages that injected calls may write to; unmapped when the visit ends.
    pub fn scratch(&mut self) -> Result<u64> {
        if self.scratch == 0 {
            let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
            let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
            self.scratch = self.must("map a scratch page", libc::SYS_mmap, [0, SCRATCH_LEN, prot, flags, u64::MAX, 0])?;
        }
        Ok(self.scratch)
    }

    /// Asks this thread and `others` of its process, in this order, what only a thread itself may ask the kernel. `statuses` are
    /// their status files.
    pub fn chorus(&mut self, others: &mut [Thread], statuses: &[Status]) -> Result<Vec<Answers>> {
        let scratch = self.scratch()?;
        let threads = std::iter::once(&mut *self.thread).chain(others);
        let mut singers = threads.zip(statuses).map(|(thread, status)| Ok((thread, chorus::free_signal(status)?))).collect::<Result<Vec<_>>>()?;
        let answers = chorus::ask(self.pid, &mut singers, self.site, &self.memory, scratch)?;
        enter(self.thread, &self.stub, !0).map_err(|e| Error::io(format!("pid {}: cannot go on with the visit of thread {}", self.pid, self.thread.tid), e))?;
        Ok(answers)
    }

    /// Makes a userfaultfd for the process's memory, and returns our duplicate; none stays behind in the process, even if we die meanwhile.
    pub fn userfaultfd(&mut self, flags: i32) -> io::Result<OwnedFd> {
        let base = self.site.base + stub::MAX_LEN as u64;
        let program = stub::watch(base, &self.thread.regs, self.thread.sigmask, flags as u32);
        self.memory.force(base, &program.bytes).map_err(|e| io::Error::from_raw_os_error(e.errno().unwrap_or(libc::EIO)))?;
        let (tid, parked) = (self.thread.tid, &mut self.thread.parked);
        let mut regs = self.thread.regs;
        (regs.rip, regs.orig_rax) = (program.entry, -1i64 as u64);
        ptrace::set_regs(tid, &regs)?;
        to_syscall_stop(tid, parked)?;
        to_syscall_stop(tid, parked)?;
        let theirs = arch::call_result(&ptrace::regs(tid)?);
        let ours = theirs.and_then(|fd| pidfd::get(pidfd::open(self.pid)?.as_fd(), fd as i32));
        to_syscall_stop(tid, parked)?;
        to_syscall_stop(tid, parked)?;
        ours
    }

    /// Lends the thread to the twin program placed behind the call stub: its entry, with the way home for any failure.
    pub(super) fn place_twin(&mut self, kin: stub::Kin) -> Result<stub::Stub> {
        let base = self.site.base + stub::MAX_LEN as u64;
        let program = stub::twin(base, &self.thread.regs, self.thread.sigmask, kin);
        self.memory.force(base, &program.bytes)?;
        Ok(program)
    }
}

/// First the way home, then the mask: in this order the thread is safe at every step.
pub(super) fn enter(thread: &Thread, stub: &stub::Stub, mask: u64) -> io::Result<()> {
    point_home(thread, stub)?;
    ptrace::set_sigmask(thread.tid, mask)
}

fn point_home(thread: &Thread, stub: &stub::Stub) -> io::Result<()> {
    let mut regs = thread.regs;
    regs.rip = stub.tail;
    regs.orig_rax = -1i64 as u64;
    ptrace::set_regs(thread.tid, &regs)
}

pub(super) fn leave(thread: &Thread, stub: &stub::Stub) -> io::Result<()> {
    point_home(thread, stub)?;
    ptrace::set_sigmask(thread.tid, thread.sigmask)?;
    ptrace::set_regs(thread.tid, &thread.regs)
}

impl Remote for Visit<'_> {
    fn pid(&self) -> Pid {
        self.pid
    }

    fn call(&mut self, number: i64, args: [u64; 6]) -> io::Result<u64> {
        run_call(self.thread.tid, &self.thread.regs, self.stub.entry, number, args, &mut self.thread.parked)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if self.scratch != 0 {
            let _ = self.call(libc::SYS_munmap, [self.scratch, SCRATCH_LEN, 0, 0, 0, 0]);
        }
        // A failure means that the target was killed: nothing is left to put back.
        if leave(self.thread, &self.stub).is_ok() {
            let _ = self.memory.force(self.site.base, &[0; ROOM]);
        }
    }
}
