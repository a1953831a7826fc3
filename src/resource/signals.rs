//! Signals: handlers, and what is pending. Masks belong to threads.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::proc::{status::Status, Pid};
use crate::sys::ptrace;
use crate::tracee::blank::Blank;
use crate::tracee::visit::Visit;
use crate::tracee::{Remote, RemoteExt};

/// One signal's action as the kernel holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Signal number.
    pub signal: i32,
    /// Address of the handler, or 1 for "ignore".
    pub handler: u64,
    /// SA_* flags.
    pub flags: u64,
    /// Where a handler returns to.
    pub restorer: u64,
    /// Signals blocked while it runs.
    pub mask: u64,
}

/// A queued signal: the kernel's siginfo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending(#[serde(with = "super::blob")] pub Vec<u8>);

impl Pending {
    /// The queue of a stopped thread, or of its process (`shared`).
    pub fn capture(pid: Pid, tid: Pid, shared: bool) -> Result<Vec<Pending>> {
        let queue = ptrace::pending(tid, shared).map_err(|e| crate::Error::io(format!("pid {pid}: cannot read the pending signals of thread {tid}"), e))?;
        Ok(queue.into_iter().map(|info| Pending(info.to_vec())).collect())
    }

    /// The signal's number.
    pub fn signal(&self) -> i32 {
        self.0.first_chunk().map_or(0, |first| i32::from_le_bytes(*first))
    }

    /// Queues it again, to the blank's process (`shared`) or to its thread; all signals are blocked there.
    pub fn queue(&self, blank: &mut Blank, shared: bool) -> Result<()> {
        // Its own view of its ids: the kernel lets a process send itself anything, even as from the kernel.
        let pid = blank.must("ask for its id", libc::SYS_getpid, [0; 6])?;
        let tid = blank.must("ask for its thread id", libc::SYS_gettid, [0; 6])?;
        let (info, signal) = (blank.put(&self.0)?, self.signal() as u64);
        if shared {
            blank.must("queue a pending signal", libc::SYS_rt_sigqueueinfo, [pid, signal, info, 0, 0, 0])?;
        } else {
            blank.must("queue a pending signal", libc::SYS_rt_tgsigqueueinfo, [pid, tid, signal, info, 0, 0])?;
        }
        Ok(())
    }
}

/// Signals of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Actions other than the default.
    pub actions: Vec<Action>,
    /// Signals pending for the whole process, oldest first.
    pub pending: Vec<Pending>,
}

const LAST: i32 = 64;
const ACTION_LEN: u64 = 32;
const SET_LEN: u64 = 8;

/// Reads the actions that differ from the default, and the shared queue.
pub fn capture(visit: &mut Visit<'_>, status: &Status) -> Result<State> {
    // SIGCHLD may carry flags while its action is the default one.
    let touched = status.hex("SigCgt")? | status.hex("SigIgn")? | 1 << (libc::SIGCHLD - 1);
    let signals: Vec<i32> = (1..=LAST).filter(|signal| touched >> (signal - 1) & 1 == 1).collect();
    let scratch = visit.scratch()?;
    for (at, &signal) in signals.iter().enumerate() {
        let out = scratch + at as u64 * ACTION_LEN;
        visit.must("read a signal's action", libc::SYS_rt_sigaction, [signal as u64, 0, out, SET_LEN, 0, 0])?;
    }
    let mut raw = vec![0; signals.len() * ACTION_LEN as usize];
    visit.memory().read(scratch, &mut raw)?;
    let word = |action: &[u8], at: usize| action[at * 8..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    let actions = signals.iter().zip(raw.chunks(ACTION_LEN as usize));
    let actions = actions.map(|(&signal, a)| Action { signal, handler: word(a, 0), flags: word(a, 1), restorer: word(a, 2), mask: word(a, 3) });
    let actions = actions.filter(|action| (action.handler, action.flags, action.mask) != (0, 0, 0)).collect();
    Ok(State { actions, pending: Pending::capture(visit.pid(), visit.thread().tid, true)? })
}

/// Sets every action, so that none of the restorer's own is left.
pub fn restore(state: &State, blank: &mut Blank) -> Result<()> {
    for signal in (1..=LAST).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        let action = state.actions.iter().find(|action| action.signal == signal);
        let words = action.map_or([0; 4], |a| [a.handler, a.flags, a.restorer, a.mask]);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = blank.put(&bytes)?;
        blank.must(&format!("set the action of signal {signal}"), libc::SYS_rt_sigaction, [signal as u64, at, 0, SET_LEN, 0, 0])?;
    }
    Ok(())
}

/// Queues what was pending; every thread of the blank blocks all signals by now.
pub fn arm(state: &State, blank: &mut Blank) -> Result<()> {
    state.pending.iter().filter(|pending| blockable(pending.signal())).try_for_each(|pending| pending.queue(blank, true))
}

/// SIGKILL and SIGSTOP act at once and are never worth queueing: a stopped process is stopped by other means.
pub fn blockable(signal: i32) -> bool {
    ![libc::SIGKILL, libc::SIGSTOP].contains(&signal)
}
