//! The twin: a fork of the target that never runs. Its memory is the frame's; we read it from outside while the target goes on.

use std::io;

use super::visit::Visit;
use super::{follow_clone, gone, to_syscall_stop, Remote};
pub use crate::arch::stub::Kin;
use crate::error::{Error, Result};
use crate::proc::{self, maps, maps::Vma, stat, status::Status, Pid};
use crate::sys::ptrace::{self, Event};

/// A stopped copy of a process's private memory. Ends when dropped, and with us at the latest.
#[derive(Debug)]
pub struct Twin {
    /// Its process id as we see it.
    pub pid: Pid,
    /// The target, where it is the twin's parent and must be made to wait for it at the end.
    child_of: Option<Pid>,
}

impl Twin {
    /// Forks the visited process.
    pub fn fork(visit: &mut Visit<'_>, kin: Kin) -> Result<Twin> {
        let direct = kin == Kin::Child;
        let target = visit.pid();
        let tid = visit.thread().tid;
        let program = visit.place_twin(kin)?;
        let born = (|| {
            ptrace::set_options(tid, ptrace::SYSGOOD | ptrace::FOLLOW_CLONES | seccomp_option(target))?;
            let mut regs = visit.thread().regs;
            (regs.rip, regs.orig_rax) = (program.entry, -1i64 as u64);
            ptrace::set_regs(tid, &regs)?;
            if kin == Kin::OrphanOfSubreaper {
                through_call(tid, visit)?;
            }
            let first = last_of_kin(follow_clone(tid, &mut visit.thread().parked)?)?;
            let twin = if direct { first } else { through_middle(first)? };
            to_syscall_stop(tid, &mut visit.thread().parked)?;
            ptrace::set_options(tid, ptrace::SYSGOOD | seccomp_option(target))?;
            let twin = Twin { pid: twin, child_of: direct.then_some(target) };
            if !direct {
                // It waits for the middle process.
                through_call(tid, visit)?;
            }
            if kin == Kin::OrphanOfSubreaper {
                through_call(tid, visit)?;
            }
            Ok(twin)
        })();
        if born.is_err() && kin == Kin::OrphanOfSubreaper {
            // Adopting orphans was given up for the birth that failed; a dead target needs it no more.
            let _ = visit.call(libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER as u64, 1, 0, 0, 0, 0]);
        }
        born.map_err(|e| explain(target, e))
    }

    /// Makes the twin drop its copies of the target's descriptors; call it as soon as the target runs.
    pub fn drop_descriptors(&self) -> Result<()> {
        let mut parked = Vec::new();
        let run = (|| {
            to_syscall_stop(self.pid, &mut parked)?;
            to_syscall_stop(self.pid, &mut parked)
        })();
        run.map_err(|e| Error::io(format!("twin {} of the target died early", self.pid), e))
    }

    /// Ends the twin and whatever trace of it the target could see.
    pub fn end(mut self) -> Result<()> {
        self.kill();
        match self.child_of.take() {
            Some(parent) => reap(parent, self.pid),
            None => Ok(()),
        }
    }

    fn kill(&self) {
        if let Ok(fd) = crate::sys::pidfd::open(self.pid) {
            let _ = crate::sys::pidfd::send_signal(std::os::fd::AsFd::as_fd(&fd), libc::SIGKILL);
        }
        while let Ok(Some(event)) = ptrace::wait(self.pid, true) {
            if matches!(event, Event::Gone(_)) {
                break;
            }
        }
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.kill();
        if let Some(parent) = self.child_of {
            let _ = reap(parent, self.pid);
        }
    }
}

/// A twin or middle process, alive or dead, as opposed to a child that the program made: it was born without an exit signal.
pub fn is_marked(pid: Pid) -> bool {
    let silent = |stat: stat::Stat| stat.exit_signal == 0 && (stat.is_zombie() || traced(pid));
    stat::read(pid).is_ok_and(silent)
}

fn traced(pid: Pid) -> bool {
    Status::read(pid).and_then(|status| status.number("TracerPid")).is_ok_and(|tracer| tracer != 0)
}

fn seccomp_option(pid: Pid) -> i32 {
    if Status::read(pid).is_ok_and(|status| status.get("Seccomp") != "0") {
        ptrace::SUSPEND_SECCOMP
    } else {
        0
    }
}

/// A new task of ours: it must not outlive us.
fn last_of_kin(born: Pid) -> io::Result<Pid> {
    ptrace::set_options(born, ptrace::EXIT_KILL | ptrace::SYSGOOD | ptrace::FOLLOW_CLONES)?;
    Ok(born)
}

/// Into and out of the next system call of the stub.
fn through_call(tid: Pid, visit: &mut Visit<'_>) -> io::Result<()> {
    to_syscall_stop(tid, &mut visit.thread().parked)?;
    to_syscall_stop(tid, &mut visit.thread().parked)
}

fn through_middle(middle: Pid) -> io::Result<Pid> {
    let twin = follow_clone(middle, &mut Vec::new()).and_then(last_of_kin);
    ptrace::cont(middle, 0)?;
    while !matches!(ptrace::wait(middle, true)?, Some(Event::Gone(_))) {}
    twin
}

fn explain(target: Pid, e: io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::ESRCH) => gone(target),
        Some(libc::EAGAIN) => Error::io(format!("pid {target} cannot fork its twin: a limit on processes (ulimit -u, pids cgroup) is reached"), e),
        Some(libc::ENOMEM) => Error::io(format!("pid {target} cannot fork its twin: the kernel will not promise that much memory (vm.overcommit_memory, memory cgroup)"), e),
        _ => Error::io(format!("pid {target} cannot fork its twin"), e),
    }
}

/// Makes `parent` wait for its dead child `twin`, in a stop of its own.
fn reap(parent: Pid, twin: Pid) -> Result<()> {
    let Ok(inner) = Status::read(twin).and_then(|status| status.innermost("NSpid")) else { return Ok(()) };
    let Ok(mut frozen) = super::seize::Frozen::seize_one(parent) else { return Ok(()) };
    let vmas: Vec<Vma> = maps::read(&proc::path(parent, "maps"))?;
    let site = super::visit::Site::find(parent, &vmas)?;
    let mut visit = Visit::begin(parent, frozen.leader(), site)?;
    match visit.call(libc::SYS_wait4, [inner as u64, 0, libc::__WALL as u64, 0, 0, 0]) {
        // The parent waits for whatever child it has, and was faster.
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => Ok(()),
        Err(e) => Err(Error::io(format!("pid {parent}: cannot wait for the twin"), e)),
        Ok(_) => Ok(()),
    }
}
