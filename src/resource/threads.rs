//! Threads: registers, and everything that the kernel keeps for each.

use std::fs;

use nix::sched::CpuSet;
use nix::unistd;
use serde::{Deserialize, Serialize};

use super::credentials;
use super::signals::{blockable, Pending};
use crate::arch::{self, Registers};
use crate::error::{Context, Error, Result};
use crate::proc::{self, status::Status, Pid};
use crate::sys::ptrace::{self, Rseq};
use crate::sys::{process_vm, sched};
use crate::tracee::blank::Blank;
use crate::tracee::memory::Memory;
use crate::tracee::visit::Visit;
use crate::tracee::{Remote, RemoteExt};

/// One thread.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// General registers at the stop, in the kernel's order.
    pub registers: Vec<u64>,
    /// Extended processor state, an XSAVE area.
    #[serde(with = "super::blob")]
    pub xstate: Vec<u8>,
    /// Blocked signals.
    pub sigmask: u64,
    /// Signals pending for this thread alone, oldest first.
    pub pending: Vec<Pending>,
    /// Alternate signal stack: address, flags, size.
    pub alternate_stack: [u64; 3],
    /// Address that the kernel clears at its exit.
    pub tid_address: u64,
    /// Robust futex list: head and length.
    pub robust_list: (u64, u64),
    /// Restartable sequences area.
    pub rseq: Rseq,
    /// Its name.
    pub name: String,
    /// Policy and priority.
    pub scheduling: sched::Attributes,
    /// Nice value, which a real-time thread keeps for later.
    pub nice: i32,
    /// I/O priority.
    pub io_priority: i32,
    /// Processors it may run on; none means all.
    pub affinity: Option<Vec<usize>>,
    /// Timer slack in nanoseconds.
    pub timer_slack: u64,
    /// The signal it gets when its parent dies.
    pub parent_death_signal: i32,
    /// Rights.
    pub credentials: credentials::State,
}

const STACK_LEN: u64 = 24;
const PR_GET_TID_ADDRESS: i32 = 40;

/// Reads all of the visiting thread.
pub fn capture(visit: &mut Visit<'_>) -> Result<State> {
    let (pid, tid) = (visit.pid(), visit.thread().tid);
    let failed = |what: &str| format!("pid {pid}: cannot read the {what} of thread {tid}");
    let out = visit.scratch()?;
    visit.must("read an alternate stack", libc::SYS_sigaltstack, [0, out, 0, 0, 0, 0])?;
    visit.must("read a tid address", libc::SYS_prctl, [PR_GET_TID_ADDRESS as u64, out + STACK_LEN, 0, 0, 0, 0])?;
    visit.must("read a parent-death signal", libc::SYS_prctl, [libc::PR_GET_PDEATHSIG as u64, out + STACK_LEN + 8, 0, 0, 0, 0])?;
    let mut raw = [0; STACK_LEN as usize + 16];
    visit.memory().read(out, &mut raw)?;
    let word = |at: usize| raw[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    let status = Status::read_thread(pid, tid)?;
    let rseq = ptrace::rseq(tid).context(failed("rseq area"))?;
    let mut registers = visit.thread().regs;
    abort_restartable_sequence(visit.memory(), &rseq, &mut registers);
    Ok(State {
        registers: arch::to_words(&registers).to_vec(),
        xstate: ptrace::xstate(tid).context(failed("processor state"))?,
        sigmask: visit.thread().sigmask,
        pending: Pending::capture(visit, false)?,
        alternate_stack: [word(0), word(8) & 0xffff_ffff, word(16)],
        tid_address: word(STACK_LEN as usize),
        robust_list: process_vm::robust_list(tid).context(failed("robust list"))?,
        rseq,
        name: status.get("Name").to_owned(),
        scheduling: sched::attributes(tid).context(failed("scheduling policy"))?,
        nice: proc::stat::read_thread(pid, tid)?.nice,
        io_priority: sched::io_priority(tid).context(failed("I/O priority"))?,
        affinity: affinity(tid)?,
        timer_slack: proc::text(&proc::path(tid, "timerslack_ns"))?.trim().parse().unwrap_or(50_000),
        parent_death_signal: word(STACK_LEN as usize + 8) as i32,
        credentials: credentials::capture(visit, &status)?,
    })
}

/// A thread inside a restartable sequence is on another processor after a restore: it starts over at the abort handler.
fn abort_restartable_sequence(memory: &Memory, rseq: &Rseq, registers: &mut Registers) {
    const CRITICAL_SECTION: u64 = 8;
    if rseq.address == 0 {
        return;
    }
    let mut word = [0; 8];
    if memory.read(rseq.address + CRITICAL_SECTION, &mut word).is_err() || word == [0; 8] {
        return;
    }
    let mut descriptor = [0; 32];
    if memory.read(u64::from_le_bytes(word), &mut descriptor).is_err() {
        return;
    }
    let field = |at: usize| descriptor[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    let (start, len, abort) = (field(8), field(16), field(24));
    if registers.rip.wrapping_sub(start) < len {
        registers.rip = abort;
    }
}

fn affinity(tid: Pid) -> Result<Option<Vec<usize>>> {
    let set = nix::sched::sched_getaffinity(unistd::Pid::from_raw(tid)).context(format!("cannot read the affinity of thread {tid}"))?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect();
    Ok((cpus.len() < online()).then_some(cpus))
}

fn online() -> usize {
    let cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    cpus.ok().flatten().map_or(1, |count| count as usize)
}

/// Sets all but rights, signals and registers.
pub fn restore(state: &State, blank: &mut Blank, notes: &mut Vec<String>) -> Result<()> {
    const AUTODISARM: u64 = 1 << 31;
    let [address, flags, size] = state.alternate_stack;
    let flags = flags & (AUTODISARM | libc::SS_DISABLE as u64);
    let stack: Vec<u8> = [address, flags, size].iter().flat_map(|word| word.to_le_bytes()).collect();
    let at = blank.put(&stack)?;
    blank.must("set its alternate stack", libc::SYS_sigaltstack, [at, 0, 0, 0, 0, 0])?;
    blank.must("set its tid address", libc::SYS_set_tid_address, [state.tid_address, 0, 0, 0, 0, 0])?;
    let (head, len) = state.robust_list;
    if head != 0 {
        blank.must("set its robust list", libc::SYS_set_robust_list, [head, len, 0, 0, 0, 0])?;
    }
    let name = blank.put_str(state.name.as_bytes())?;
    blank.must("set its name", libc::SYS_prctl, [libc::PR_SET_NAME as u64, name, 0, 0, 0, 0])?;
    blank.must("set its nice value", libc::SYS_setpriority, [libc::PRIO_PROCESS as u64, 0, state.nice as u64, 0, 0, 0])?;
    let rseq = &state.rseq;
    if rseq.address != 0 {
        blank.must("register its rseq area", libc::SYS_rseq, [rseq.address, u64::from(rseq.size), u64::from(rseq.flags), u64::from(rseq.signature), 0, 0])?;
    }
    if let Err(e) = settle(state, blank.tid) {
        notes.push(e.to_string());
    }
    Ok(())
}

/// What is set from outside, and what the host may not allow.
fn settle(state: &State, tid: Pid) -> Result<()> {
    sched::set_attributes(tid, &state.scheduling).context(format!("thread {tid}: cannot set its scheduling policy (needs CAP_SYS_NICE)"))?;
    if state.io_priority != 0 {
        sched::set_io_priority(tid, state.io_priority).context(format!("thread {tid}: cannot set its I/O priority"))?;
    }
    let slack = proc::path(tid, "timerslack_ns");
    fs::write(&slack, state.timer_slack.to_string()).at("write", &slack)?;
    let Some(cpus) = &state.affinity else { return Ok(()) };
    let mut set = CpuSet::new();
    cpus.iter().filter_map(|&cpu| set.set(cpu).ok()).for_each(drop);
    nix::sched::sched_setaffinity(unistd::Pid::from_raw(tid), &set).context(format!("thread {tid}: none of its processors {cpus:?} is here; it runs on all"))
}

/// Gives up rights and queues the thread's own signals; all signals are blocked.
pub fn arm(state: &State, blank: &mut Blank) -> Result<()> {
    credentials::arm(&state.credentials, blank)?;
    // After the credentials, whose change clears it.
    blank.must("set its parent-death signal", libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, state.parent_death_signal as u64, 0, 0, 0, 0])?;
    state.pending.iter().filter(|pending| blockable(pending.signal())).try_for_each(|pending| pending.queue(blank, false))
}

/// The very last step: processor state, registers, signal mask. The thread is not to run a call for us any more.
pub fn load_registers(state: &State, tid: Pid) -> Result<()> {
    let words = state.registers.as_slice().try_into().map_err(|_| Error::corrupt("a thread of the frame has a wrong number of registers"))?;
    let registers = arch::restored(&arch::from_words(words));
    let load = || {
        ptrace::set_xstate(tid, &state.xstate)?;
        ptrace::set_regs(tid, &registers)?;
        ptrace::set_sigmask(tid, state.sigmask)
    };
    load().context(format!("cannot load the registers of thread {tid}; this processor has another extended state than the frame's"))
}
