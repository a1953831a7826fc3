//! The calls that our own stops interrupt. At the second stop such a call only shows as `restart_syscall`: so we remember it.

use std::collections::HashMap;

use crate::arch::{self, restart, Interrupted, Registers};
use crate::proc::Pid;
use crate::tracee::seize::Frozen;

/// By thread, the registers at the first stop that found it in its call.
#[derive(Debug, Default)]
pub struct Calls(HashMap<Pid, Registers>);

impl Calls {
    /// Learns from a fresh stop, and tells the stopped threads which call they are in.
    pub fn exchange(&mut self, frozen: &mut Frozen) {
        let mut now = HashMap::new();
        for thread in frozen.processes.iter_mut().flat_map(|process| &mut process.threads) {
            let regs = &thread.regs;
            if arch::interrupted(regs) != Interrupted::WithRemainingTime {
                continue;
            }
            if restart::code_to_read(regs).is_none() {
                now.insert(thread.tid, *regs);
            } else if let Some(before) = self.0.get(&thread.tid).filter(|before| restart::is_same_call(before, regs)) {
                thread.call = Some(before.orig_rax);
                now.insert(thread.tid, *before);
            }
        }
        self.0 = now;
    }
}
