//! Scheduling of a thread, read and set from outside by its id.

use std::io;
use std::mem::size_of;

use libc::pid_t;
use nix::sched::{sched_getaffinity, sched_getcpu, sched_setaffinity, CpuSet};
use nix::unistd::Pid;

use super::check;

/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

/// `struct sched_attr` of sched_setattr(2), without utilisation clamps.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attributes {
    size: u32,
    /// SCHED_OTHER, SCHED_FIFO …
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Static priority of real-time policies.
    pub priority: u32,
    /// SCHED_DEADLINE: nanoseconds.
    pub runtime: u64,
    /// SCHED_DEADLINE: nanoseconds.
    pub deadline: u64,
    /// SCHED_DEADLINE: nanoseconds.
    pub period: u64,
}

impl Attributes {
    /// Whether the policy is a real-time one, SCHED_DEADLINE included.
    pub fn is_real_time(&self) -> bool {
        const DEADLINE: u32 = 6;
        [libc::SCHED_FIFO as u32, libc::SCHED_RR as u32, DEADLINE].contains(&self.policy)
    }
}

/// Policy and priority of a thread.
pub fn attributes(tid: pid_t) -> io::Result<Attributes> {
    let mut found = Attributes::default();
    // SAFETY: the kernel writes at most the size we state.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &mut found, size_of::<Attributes>(), 0) })?;
    Ok(found)
}

/// Sets policy and priority of a thread.
pub fn set_attributes(tid: pid_t, wanted: &Attributes) -> io::Result<()> {
    let wanted = Attributes { size: size_of::<Attributes>() as u32, ..*wanted };
    // SAFETY: `wanted` is live and states its size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &wanted, 0) }).map(drop)
}

const IOPRIO_WHO_PROCESS: i32 = 1;

/// I/O priority of a thread: class and level.
pub fn io_priority(tid: pid_t) -> io::Result<i32> {
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) }).map(|value| value as i32)
}

/// Sets the I/O priority of a thread.
pub fn set_io_priority(tid: pid_t, priority: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, priority) }).map(drop)
}

/// Keeps the calling thread off a processor, if it may use another.
pub fn keep_off(processor: usize) {
    let Ok(mut allowed) = sched_getaffinity(THIS) else { return };
    if allowed.unset(processor).is_ok() {
        // With none left the kernel refuses.
        let _ = sched_setaffinity(THIS, &allowed);
    }
}

/// Keeps the calling thread, and whom it forks meanwhile, on one processor: who stops and starts another thread hundreds of times
/// need not wait each time until an idle processor wakes up.
#[derive(Debug)]
pub struct Together(Option<(CpuSet, CpuSet)>);

impl Together {
    /// Begins on the processor we run on, where that can be told.
    pub fn begin() -> Together {
        let both = || {
            let before = sched_getaffinity(THIS)?;
            let mut one = CpuSet::new();
            one.set(sched_getcpu()?)?;
            Ok::<_, nix::Error>((before, one))
        };
        let together = Together(both().ok());
        together.gather();
        together
    }

    /// Goes on after `part`, on the same processor.
    pub fn gather(&self) {
        // What is refused costs time only.
        let _ = self.0.as_ref().map(|(_, one)| sched_setaffinity(THIS, one));
    }

    /// Lets the calling thread, and whom it forks now, run anywhere again.
    pub fn part(&self) {
        let _ = self.0.as_ref().map(|(before, _)| sched_setaffinity(THIS, before));
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        self.part();
    }
}

/// While it lives, the calling thread runs ahead of ordinary ones, where we may ask for that.
#[derive(Debug)]
pub struct Urgent(Option<Attributes>);

impl Urgent {
    /// Begins; what we fork meanwhile is ordinary.
    pub fn begin() -> Urgent {
        const RESET_ON_FORK: u64 = 1;
        let before = attributes(0).ok();
        let urgent = Attributes { policy: libc::SCHED_FIFO as u32, priority: 1, flags: RESET_ON_FORK, ..Attributes::default() };
        Urgent(before.filter(|_| set_attributes(0, &urgent).is_ok()))
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // What we were allowed to leave we may come back to.
            let _ = set_attributes(0, before);
        }
    }
}
