//! Restartable sequences (rseq(2)): a thread that is stopped inside one must start over at its abort handler.

use libc::pid_t;

use crate::arch::Registers;
use crate::sys::{process_vm, ptrace};

/// Offset of the pointer to the active sequence's descriptor in `struct rseq`.
const ACTIVE: u64 = 8;

/// Sends a stopped thread to its abort handler if it is inside a sequence, as the kernel does for a thread that lost its
/// processor. The kernel itself no longer can: it forgets the sequence as soon as the thread runs a call of ours elsewhere.
pub fn abort(tid: pid_t, regs: &mut Registers) -> bool {
    let handler = handler(tid, regs.rip);
    if let Some(address) = handler {
        regs.rip = address;
    }
    handler.is_some()
}

fn handler(tid: pid_t, rip: u64) -> Option<u64> {
    // A kernel without rseq has nothing to tell, and no sequences either.
    let area = ptrace::rseq(tid).ok()?.address;
    let [descriptor] = words(tid, area.checked_add(ACTIVE).filter(|_| area != 0)?)?;
    let [_version_and_flags, start, len, abort] = words(tid, Some(descriptor).filter(|at| *at != 0)?)?;
    (rip.wrapping_sub(start) < len).then_some(abort)
}

fn words<const N: usize>(tid: pid_t, at: u64) -> Option<[u64; N]> {
    let mut raw = vec![0; N * 8];
    let len = raw.len();
    process_vm::read(tid, &[(at, len)], &mut raw).ok().filter(|read| *read == len)?;
    let mut chunks = raw.chunks_exact(8);
    Some(std::array::from_fn(|_| chunks.next().and_then(|word| word.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))))
}
