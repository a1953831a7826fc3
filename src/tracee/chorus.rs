//! Many threads of one process answer the same questions, as many at a time as there is room for: while one wakes up, others
//! answer. Each runs once and stops once, where a signal is to be had that nobody misses; a stop and the way out of it wait for a
//! processor to wake up, which takes longer than all the calls.

use std::io;

use super::memory::Memory;
use super::seize::Thread;
use super::visit::{enter, leave, Site};
use super::{await_syscall_stop, to_syscall_stop};
use crate::arch::{self, stub};
use crate::error::{Error, Result};
use crate::proc::{status::Status, Pid};
use crate::sys::ptrace::{self, Event};

pub use crate::arch::stub::{Answers, ANSWERS_LEN};

/// A thread, and the signal that may stop it when it has answered.
pub(super) type Singer<'a> = (&'a mut Thread, Option<i32>);

/// A thread while it answers, and the code it runs.
struct Voice<'a> {
    thread: &'a mut Thread,
    signal: Option<i32>,
    stub: stub::Stub,
}

/// A signal that the thread with this status file may send to itself to be stopped by its tracer: should the tracer be gone by
/// then, nothing happens, because the signal's default is to be ignored, and the process did not choose otherwise. `None` if there
/// is none, or if a filter may forbid to send it.
pub(super) fn free_signal(status: &Status) -> Result<Option<i32>> {
    const IGNORED: [i32; 2] = [libc::SIGURG, libc::SIGWINCH];
    const UNFILTERED: &str = "0";
    let taken = status.hex("SigCgt")? | status.hex("SigPnd")? | status.hex("ShdPnd")?;
    Ok(IGNORED.into_iter().find(|signal| taken >> (signal - 1) & 1 == 0).filter(|_| status.get("Seccomp") == UNFILTERED))
}

/// Asks all of `singers`, which are stopped. `scratch` are a few pages of the process that nothing else uses; `memory` is the
/// process's. The call stub at the site is left alone, so a visit may go on meanwhile.
pub(super) fn ask(pid: Pid, mut singers: &mut [Singer<'_>], site: Site, memory: &Memory, scratch: u64) -> Result<Vec<Answers>> {
    let mut answers = Vec::with_capacity(singers.len());
    while !singers.is_empty() {
        let stubs = fitting(singers, site, scratch);
        let (now, later) = singers.split_at_mut(stubs.len());
        let mut voices: Vec<Voice<'_>> = now.iter_mut().zip(stubs).map(|((thread, signal), stub)| Voice { thread, signal: *signal, stub }).collect();
        sing(&mut voices, site, memory).map_err(|e| e.context(format!("pid {pid}: cannot have its threads tell what they are like")))?;
        answers.extend(read(pid, voices.len(), memory, scratch)?);
        singers = later;
    }
    Ok(answers)
}

/// Stubs, one behind the other, for the first of `singers`, as many as there is room for.
fn fitting(singers: &[Singer<'_>], site: Site, scratch: u64) -> Vec<stub::Stub> {
    let (start, room) = site.behind_call();
    let mut stubs: Vec<stub::Stub> = Vec::new();
    let mut base = start;
    for (thread, signal) in singers {
        let stub = stub::questions(base, &thread.regs, thread.sigmask, scratch + (stubs.len() * ANSWERS_LEN) as u64, *signal);
        base += stub.bytes.len() as u64;
        // The first one always fits.
        if !stubs.is_empty() && base > start + room as u64 {
            break;
        }
        stubs.push(stub);
    }
    stubs
}

/// All of `voices` run through their stubs.
fn sing(voices: &mut [Voice<'_>], site: Site, memory: &Memory) -> Result<()> {
    let code: Vec<u8> = voices.iter().flat_map(|voice| voice.stub.bytes.iter().copied()).collect();
    let at = site.behind_call().0;
    memory.force(at, &code)?;
    let sung = voices.iter().try_for_each(Voice::begin).and_then(|()| voices.iter_mut().try_for_each(Voice::end));
    // All of them, whatever happened: a failure means that the target was killed.
    let mut left = Ok(());
    for voice in voices.iter() {
        left = left.and(leave(voice.thread, &voice.stub));
    }
    sung.and(left).map_err(|e| Error::io("it went away", e))?;
    memory.force(at, &vec![0; code.len()])
}

impl Voice<'_> {
    fn begin(&self) -> io::Result<()> {
        let tid = self.thread.tid;
        enter(self.thread, &self.stub, self.signal.map_or(!0, |signal| !(1 << (signal - 1))))?;
        let mut regs = self.thread.regs;
        (regs.rip, regs.orig_rax) = (self.stub.entry, -1i64 as u64);
        ptrace::set_regs(tid, &regs)?;
        match self.signal {
            Some(_) => ptrace::cont(tid, 0),
            None => ptrace::syscall_stop(tid),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        match self.signal {
            Some(signal) => self.until_signal(signal),
            None => self.call_by_call(),
        }
    }

    /// Waits for its own signal, which nobody gets; one from elsewhere comes back at the thaw.
    fn until_signal(&mut self, signal: i32) -> io::Result<()> {
        let tid = self.thread.tid;
        loop {
            match ptrace::wait(tid, true)? {
                Some(Event::Signal(seen)) if seen == signal && ptrace::regs(tid)?.rip == self.stub.tail => return Ok(()),
                Some(Event::Signal(seen)) => self.thread.parked.push(seen),
                Some(Event::Gone(_)) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
                _ => {}
            }
            ptrace::cont(tid, 0)?;
        }
    }

    /// Every call is one stop at its entry and one at its exit.
    fn call_by_call(&mut self) -> io::Result<()> {
        await_syscall_stop(self.thread.tid, &mut self.thread.parked)?;
        for _ in 1..2 * stub::QUESTIONS {
            to_syscall_stop(self.thread.tid, &mut self.thread.parked)?;
        }
        arch::call_result(&ptrace::regs(self.thread.tid)?).map(drop)
    }
}

fn read(pid: Pid, count: usize, memory: &Memory, scratch: u64) -> Result<Vec<Answers>> {
    let mut raw = vec![0; count * ANSWERS_LEN];
    memory.read(scratch, &mut raw)?;
    let answers: Vec<Answers> = raw.chunks_exact(ANSWERS_LEN).filter_map(|bytes| bytes.try_into().ok()).map(Answers::of).collect();
    if answers.iter().any(|answers| answers.returned != [0; 2]) {
        return Err(Error::refused(format!("pid {pid}: its threads cannot read their tid address (needs a kernel with CONFIG_CHECKPOINT_RESTORE)")));
    }
    Ok(answers)
}
