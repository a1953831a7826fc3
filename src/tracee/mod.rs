//! Floor 1: processes in our hands. `seize` stops a live tree, `visit` makes it run system calls for us without a trace,
//! `twin` splits off its memory, `blank` is an empty process that a restore fills.

pub mod blank;
pub mod chorus;
pub mod memory;
pub mod pager;
pub mod rseq;
pub mod seize;
pub mod twin;
pub mod visit;

use std::io;

use crate::arch::{self, Registers};
use crate::error::{Error, Kind, Result};
use crate::proc::Pid;
use crate::sys::ptrace::{self, Event};

/// A process that can be made to run system calls.
pub trait Remote {
    /// Its process id as we see it.
    fn pid(&self) -> Pid;
    /// Runs one system call in it.
    fn call(&mut self, number: i64, args: [u64; 6]) -> io::Result<u64>;
}

/// Runs one system call in stopped thread `tid` by way of the `syscall` instruction at `site`; signals that try to arrive meanwhile go to `parked`.
fn run_call(tid: Pid, template: &Registers, site: u64, number: i64, args: [u64; 6], parked: &mut Vec<i32>) -> io::Result<u64> {
    let mut regs = *template;
    arch::load_call(&mut regs, site, number, &args);
    ptrace::set_regs(tid, &regs)?;
    to_syscall_stop(tid, parked)?;
    to_syscall_stop(tid, parked)?;
    arch::call_result(&ptrace::regs(tid)?)
}

/// Lets `tid` run to its next entry or exit of a system call.
fn to_syscall_stop(tid: Pid, parked: &mut Vec<i32>) -> io::Result<()> {
    ptrace::syscall_stop(tid)?;
    await_syscall_stop(tid, parked)
}

/// Waits for `tid`, which was let run to its next entry or exit of a system call.
fn await_syscall_stop(tid: Pid, parked: &mut Vec<i32>) -> io::Result<()> {
    loop {
        match ptrace::wait(tid, true)? {
            Some(Event::Syscall) => return Ok(()),
            Some(Event::Signal(signal)) => parked.push(signal),
            Some(Event::Gone(_)) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            _ => {}
        }
        ptrace::syscall_stop(tid)?;
    }
}

/// Runs `tid` into and out of the clone call that it is about to make, up to the event that names the new task, which is stopped.
fn follow_clone(tid: Pid, parked: &mut Vec<i32>) -> io::Result<Pid> {
    to_syscall_stop(tid, parked)?;
    ptrace::syscall_stop(tid)?;
    match ptrace::wait(tid, true)? {
        Some(Event::Event(_)) => {}
        Some(Event::Syscall) => return Err(arch::call_result(&ptrace::regs(tid)?).err().unwrap_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))),
        _ => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
    let born = ptrace::event_message(tid)? as Pid;
    loop {
        match ptrace::wait(born, true)? {
            Some(Event::Stop) => return Ok(born),
            Some(Event::Gone(_)) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            _ => ptrace::cont(born, 0)?,
        }
    }
}

/// The error for a target that vanished in our hands.
pub fn gone(pid: Pid) -> Error {
    Error::new(Kind::TargetGone, format!("pid {pid} exited while it was being worked on; nothing was written"))
}

/// Words for a failed injected call.
pub trait RemoteExt: Remote {
    /// Runs a system call; `what` says in an error what it was for.
    fn must(&mut self, what: &str, number: i64, args: [u64; 6]) -> Result<u64> {
        let pid = self.pid();
        self.call(number, args).map_err(|e| Error::io(format!("pid {pid}: cannot {what}"), e))
    }
}

impl<T: Remote + ?Sized> RemoteExt for T {}

/// The path of a thread's own view in /proc.
pub fn task(pid: Pid, tid: Pid, what: &str) -> std::path::PathBuf {
    std::path::PathBuf::from(format!("/proc/{pid}/task/{tid}/{what}"))
}
