//! Threads: registers, and everything that the kernel keeps for each.

use std::fs;
use std::io;

use nix::sched::CpuSet;
use nix::unistd;
use serde::{Deserialize, Serialize};

use super::credentials;
use super::signals::{blockable, Pending};
use crate::arch::{self, restart, xstate, Registers};
use crate::error::{Context, Error, Result};
use crate::proc::{self, status::Status, Pid};
use crate::sys::ptrace::{self, Rseq};
use crate::sys::{process_vm, sched};
use crate::tracee::blank::Blank;
use crate::tracee::chorus::Answers;
use crate::tracee::memory::Memory;
use crate::tracee::seize::Thread;
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
    /// Its name, which may end in the middle of a character.
    #[serde(with = "super::blob")]
    pub name: Vec<u8>,
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

/// What threads told of themselves, and their status files.
pub struct Told {
    statuses: Vec<Status>,
    answers: Vec<Answers>,
}

/// Has the visiting thread and `others`, the other threads of its process, tell what only they can.
pub fn ask(visit: &mut Visit<'_>, others: &mut [Thread]) -> Result<Told> {
    let (pid, leader) = (visit.pid(), visit.thread().tid);
    let tids = std::iter::once(leader).chain(others.iter().map(|thread| thread.tid));
    let statuses = tids.map(|tid| Status::read_thread(pid, tid)).collect::<Result<Vec<_>>>()?;
    let answers = visit.chorus(others, &statuses)?;
    Ok(Told { statuses, answers })
}

/// Reads all of these threads after they were asked; in the same order, each with its innermost id.
pub fn capture(visit: &mut Visit<'_>, others: &[Thread], told: &Told) -> Result<Vec<(Pid, State)>> {
    let (pid, leader) = (visit.pid(), visit.thread().clone());
    let known = std::iter::once(&leader).chain(others).zip(&told.answers).zip(&told.statuses);
    known.map(|((thread, answers), status)| Ok((status.innermost("NSpid")?, one(pid, thread, answers, status, visit.memory())?))).collect()
}

/// All of a thread that told `answers` of itself; `status` is its status file.
fn one(pid: Pid, thread: &Thread, answers: &Answers, status: &Status, memory: &Memory) -> Result<State> {
    let tid = thread.tid;
    let failed = |what: &str| format!("pid {pid}: cannot read the {what} of thread {tid}");
    let scheduling = sched::attributes(tid).context(failed("scheduling policy"))?;
    Ok(State {
        registers: arch::to_words(&registers(thread, memory)).to_vec(),
        xstate: ptrace::xstate(tid).context(failed("processor state"))?,
        sigmask: thread.sigmask,
        pending: Pending::capture(pid, tid, false)?,
        alternate_stack: answers.alternate_stack,
        tid_address: answers.tid_address,
        robust_list: process_vm::robust_list(tid).context(failed("robust list"))?,
        rseq: ptrace::rseq(tid).context(failed("rseq area"))?,
        name: name(pid, tid, status)?,
        // Under a real-time policy the kernel tells only there which nice value waits for its end.
        nice: if scheduling.is_real_time() { proc::stat::read_thread(pid, tid)?.nice } else { scheduling.nice },
        scheduling,
        io_priority: sched::io_priority(tid).context(failed("I/O priority"))?,
        affinity: affinity(tid)?,
        timer_slack: answers.timer_slack,
        parent_death_signal: answers.parent_death_signal as i32,
        credentials: credentials::capture(pid, tid, answers.securebits as u32, status)?,
    })
}

/// As at the stop; a call that was interrupted before, by an earlier frame or by job control, is called by its name.
fn registers(thread: &Thread, memory: &Memory) -> Registers {
    let regs = thread.regs;
    if let Some(orig_rax) = thread.call {
        return Registers { orig_rax, ..regs };
    }
    let mut code = [0; restart::CODE_LEN];
    match restart::code_to_read(&regs) {
        // Code that cannot be read tells nothing; the arguments may.
        Some(at) => {
            let _ = memory.read(at, &mut code);
            restart::unveiled(&regs, &code)
        }
        None => regs,
    }
}

fn name(pid: Pid, tid: Pid, status: &Status) -> Result<Vec<u8>> {
    // The status file has it too, but with some characters escaped.
    let plain = status.get("Name");
    if plain.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
        return Ok(plain.as_bytes().to_vec());
    }
    let comm = proc::path(pid, &format!("task/{tid}/comm"));
    let line = fs::read(&comm).at("read", &comm)?;
    Ok(line.strip_suffix(b"\n").unwrap_or(&line).to_vec())
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
    let rseq = &state.rseq;
    if rseq.address != 0 {
        blank.must("register its rseq area", libc::SYS_rseq, [rseq.address, u64::from(rseq.size), u64::from(rseq.flags), u64::from(rseq.signature), 0, 0])?;
    }
    let name = blank.put_str(&state.name)?;
    blank.must("set its name", libc::SYS_prctl, [libc::PR_SET_NAME as u64, name, 0, 0, 0, 0])?;
    // None for real-time threads: they have no slack.
    if state.timer_slack != 0 {
        blank.must("set its timer slack", libc::SYS_prctl, [libc::PR_SET_TIMERSLACK as u64, state.timer_slack, 0, 0, 0, 0])?;
    }
    if let Err(e) = blank.call(libc::SYS_setpriority, [libc::PRIO_PROCESS as u64, 0, state.nice as u64, 0, 0, 0]) {
        notes.push(format!("thread {}: cannot set its nice value {}: {e}", blank.tid, state.nice));
    }
    notes.extend(schedule(state, blank.tid).into_iter().filter_map(|(what, result)| Some(format!("thread {}: cannot set its {what}: {}", blank.tid, result.err()?))));
    Ok(())
}

/// What the host may not allow; the thread runs without.
fn schedule(state: &State, tid: Pid) -> [(&'static str, io::Result<()>); 3] {
    let io_priority = if state.io_priority == 0 { Ok(()) } else { sched::set_io_priority(tid, state.io_priority) };
    [
        ("scheduling policy or priority (CAP_SYS_NICE?)", set_policy(state, tid)),
        ("I/O priority (CAP_SYS_NICE?)", io_priority),
        ("affinity, as none of its processors is here; it runs on ours", set_affinity(state, tid)),
    ]
}

fn set_policy(state: &State, tid: Pid) -> io::Result<()> {
    let mut wanted = state.scheduling;
    // The usual time slice is not to become one that the program asked for.
    if sched::attributes(tid)?.runtime == wanted.runtime {
        wanted.runtime = 0;
    }
    sched::set_attributes(tid, &wanted)
}

fn set_affinity(state: &State, tid: Pid) -> io::Result<()> {
    let all: Vec<usize> = (0..CpuSet::count()).collect();
    // First all: where none of its own is here, it must not stay on the one that the blank was held on.
    for cpus in [&all, state.affinity.as_ref().unwrap_or(&all)] {
        let mut set = CpuSet::new();
        for &cpu in cpus {
            // A number beyond the set's size is no processor of this machine either.
            let _ = set.set(cpu);
        }
        nix::sched::sched_setaffinity(unistd::Pid::from_raw(tid), &set)?;
    }
    Ok(())
}

/// Gives up rights and queues the thread's own signals; all signals are blocked.
pub fn arm(state: &State, blank: &mut Blank, notes: &mut Vec<String>) -> Result<()> {
    credentials::arm(&state.credentials, blank, notes)?;
    // After the credentials, whose change clears it.
    blank.must("set its parent-death signal", libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, state.parent_death_signal as u64, 0, 0, 0, 0])?;
    state.pending.iter().filter(|pending| blockable(pending.signal())).try_for_each(|pending| pending.queue(blank, false))
}

/// The very last step: processor state, registers, signal mask. The thread is not to run a call for us any more.
pub fn load_registers(state: &State, tid: Pid) -> Result<()> {
    let words = state.registers.as_slice().try_into().map_err(|_| Error::corrupt("a thread of the frame has a wrong number of registers"))?;
    let registers = arch::restored(&arch::from_words(words));
    let failed = |what: &str| format!("cannot load the {what} of thread {tid}");
    let own = ptrace::xstate(tid).context(failed("processor state"))?;
    let area = xstate::fit(&state.xstate, &own).map_err(|e| e.context(format!("thread {tid}")))?;
    ptrace::set_xstate(tid, &area).context(failed("processor state"))?;
    ptrace::set_regs(tid, &registers).context(failed("registers"))?;
    ptrace::set_sigmask(tid, state.sigmask).context(failed("signal mask"))
}
