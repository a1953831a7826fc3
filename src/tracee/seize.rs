//! Stopping a whole process tree at one instant, and letting it go as if we had never come.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::arch::{self, Registers};
use crate::error::{Error, Kind, Result};
use crate::proc::{self, stat, status::Status, Pid};
use crate::sys::ptrace::{self, Event};
use crate::tracee::rseq;

/// How long a thread may take to stop while the others stand still. Longer means that it sleeps where no signal reaches it: it
/// waits for a disk, or for a child of vfork that stands still as well; all must run on before that can end.
const STOP_WITHIN: Duration = Duration::from_millis(50);

/// How long a thread may wait for a processor before it can stop.
const RUN_WITHIN: Duration = Duration::from_secs(5);

/// How long to wait for such a thread once all others run; past that it is let go of when we exit.
const LET_GO_WITHIN: Duration = Duration::from_secs(60);

/// A thread stopped by us.
#[derive(Debug, Clone)]
pub struct Thread {
    /// Its id as we see it.
    pub tid: Pid,
    /// Registers at the stop.
    pub regs: Registers,
    /// Blocked signals.
    pub sigmask: u64,
    /// Number of the call that it is in, where it shows as `restart_syscall` and somebody remembers it.
    pub call: Option<u64>,
    /// The job control signal that had stopped it before we came.
    pub stopped_by: Option<i32>,
    /// Signals that reached it while it worked for us; sent again at the thaw.
    pub parked: Vec<i32>,
}

/// A process whose threads are all stopped, or a zombie.
#[derive(Debug)]
pub struct Process {
    /// Its id as we see it.
    pub pid: Pid,
    /// /proc/PID/stat at the instant of the frame.
    pub stat: stat::Stat,
    /// Its threads, leader first; none for a zombie.
    pub threads: Vec<Thread>,
}

impl Process {
    /// Dead, not yet waited for by its parent.
    pub fn is_zombie(&self) -> bool {
        self.threads.is_empty()
    }
}

/// A stopped process tree, parents before children. Dropping it lets everything run on.
#[derive(Debug)]
pub struct Frozen {
    /// Its processes.
    pub processes: Vec<Process>,
    /// When the first thread was stopped.
    pub begun: Instant,
    seized: Vec<(Pid, Pid)>,
    /// Those of them that were not seen to stop.
    running: BTreeSet<Pid>,
}

impl Frozen {
    /// Stops `root`, its threads and all its descendants.
    pub fn seize(root: Pid) -> Result<Frozen> {
        let mut frozen = Frozen { processes: Vec::new(), begun: Instant::now(), seized: Vec::new(), running: BTreeSet::new() };
        let (mut threads, mut known) = (Vec::new(), BTreeSet::new());
        // Attaching takes longest, and stops nobody.
        let mut fresh = frozen.attach_new(root, &tree(root)?, &mut known)?;
        frozen.begun = Instant::now();
        // Until a look around finds nobody new: what is stopped cannot make threads or children.
        loop {
            fresh.retain(|&(_, tid)| ptrace::interrupt(tid).is_ok());
            for (pid, tid) in fresh {
                threads.extend(wait_stopped(pid, tid)?.map(|thread| (pid, thread)));
                frozen.running.remove(&tid);
            }
            let pids = tree(root)?;
            fresh = frozen.attach_new(root, &pids, &mut known)?;
            if fresh.is_empty() {
                pids.into_iter().try_for_each(|pid| frozen.add_process(pid, &mut threads))?;
                return Ok(frozen);
            }
        }
    }

    /// Stops the main thread of `pid` only.
    pub fn seize_one(pid: Pid) -> Result<Frozen> {
        let mut frozen = Frozen { processes: Vec::new(), begun: Instant::now(), seized: Vec::new(), running: BTreeSet::new() };
        if attach(pid, pid, true)? && ptrace::interrupt(pid).is_ok() {
            frozen.seized.push((pid, pid));
            frozen.running.insert(pid);
        }
        let leader = wait_stopped(pid, pid)?.ok_or_else(|| super::gone(pid))?;
        frozen.running.remove(&pid);
        frozen.processes.push(Process { pid, stat: stat::read(pid)?, threads: vec![leader] });
        Ok(frozen)
    }

    /// The main thread of the first process.
    pub fn leader(&mut self) -> &mut Thread {
        &mut self.processes[0].threads[0]
    }

    /// Attaches to all threads of `pids` that are not `known`.
    fn attach_new(&mut self, root: Pid, pids: &[Pid], known: &mut BTreeSet<Pid>) -> Result<Vec<(Pid, Pid)>> {
        let mut fresh = Vec::new();
        for &pid in pids {
            for tid in proc::threads(pid).unwrap_or_default() {
                if known.insert(tid) && attach(pid, tid, pid == root)? {
                    self.seized.push((pid, tid));
                    self.running.insert(tid);
                    fresh.push((pid, tid));
                }
            }
        }
        Ok(fresh)
    }

    fn add_process(&mut self, pid: Pid, threads: &mut Vec<(Pid, Thread)>) -> Result<()> {
        let stat = stat::read(pid)?;
        let (own, others) = std::mem::take(threads).into_iter().partition(|(owner, _)| *owner == pid);
        *threads = others;
        let mut own: Vec<Thread> = Vec::into_iter(own).map(|(_, thread)| thread).collect();
        own.sort_by_key(|thread| (thread.tid != pid, thread.tid));
        if own.first().is_some_and(|leader| leader.tid != pid) {
            return Err(Error::refused(format!("pid {pid}: its main thread has exited while others run on; such a process cannot be restored: end it or let its main thread wait")));
        }
        self.processes.push(Process { pid, stat, threads: own });
        Ok(())
    }

    /// Lets every thread run on, with the registers and masks it was stopped with.
    pub fn thaw(mut self) {
        self.release(0);
    }

    /// Lets every thread run on, after a stop signal that keeps the tree stopped.
    pub fn thaw_stopped(mut self) {
        for process in self.processes.iter().filter(|p| !p.is_zombie()) {
            // A queued SIGSTOP takes effect before the first instruction after the detach.
            let _ = signal_process(process.pid, libc::SIGSTOP);
        }
        self.release(0);
    }

    /// Ends every process at this very instant: none runs another instruction.
    pub fn kill(mut self) {
        // Root first: a parent must not see its children die.
        for process in self.processes.iter().filter(|p| !p.is_zombie()) {
            let _ = signal_process(process.pid, libc::SIGKILL);
        }
        // Backwards, because a main thread is not waited for before its other threads.
        for (_, tid) in self.seized.drain(..).rev() {
            while let Ok(Some(event)) = ptrace::wait(tid, true) {
                if matches!(event, Event::Gone(_)) {
                    break;
                }
            }
        }
    }

    fn release(&mut self, signal: i32) {
        let parked: Vec<(Pid, Pid, i32)> = self
            .processes
            .iter()
            .flat_map(|p| p.threads.iter().flat_map(move |t| t.parked.iter().map(move |&s| (p.pid, t.tid, s))))
            .collect();
        for (pid, tid, signal) in parked {
            let _ = match signal {
                // A stop is the whole process's: whichever thread is let go first must not run before it.
                libc::SIGSTOP => signal_process(pid, signal),
                _ => crate::sys::pidfd::tgkill(pid, tid, signal),
            };
        }
        let (mut late, stopped): (Vec<_>, Vec<_>) = self.seized.drain(..).partition(|(_, tid)| self.running.contains(tid));
        // An error means that the thread is gone, which is its own affair.
        stopped.iter().for_each(|&(_, tid)| drop(ptrace::detach(tid, signal)));
        // After a failure. Those may sleep where no signal reaches them, perhaps for one of the others, which now run.
        late.retain(|&(_, tid)| ptrace::interrupt(tid).is_ok());
        let deadline = Instant::now() + LET_GO_WITHIN;
        while !late.is_empty() && Instant::now() < deadline {
            late.retain(|&(_, tid)| !let_go(tid));
            std::thread::sleep(Duration::from_micros(500));
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.release(0);
    }
}

/// Lets go of a thread that was asked to stop, if it has; true when there is nothing more to do. None is waited for, because
/// another of them may have to run before it can stop.
fn let_go(tid: Pid) -> bool {
    match ptrace::wait(tid, false) {
        Ok(Some(Event::Signal(signal))) => ptrace::cont(tid, signal).is_err(),
        Ok(Some(Event::Event(_) | Event::Syscall)) => ptrace::cont(tid, 0).is_err(),
        Ok(Some(Event::Gone(_))) | Err(_) => true,
        Ok(_) => {
            let Ok(mut regs) = ptrace::regs(tid) else { return false };
            // It was not read: the call that our stop interrupted is made again.
            if arch::hide_interruption(&mut regs) {
                let _ = ptrace::set_regs(tid, &regs);
            }
            ptrace::detach(tid, 0).is_ok()
        }
    }
}

fn signal_process(pid: Pid, signal: i32) -> std::io::Result<()> {
    crate::sys::pidfd::open(pid).and_then(|fd| crate::sys::pidfd::send_signal(std::os::fd::AsFd::as_fd(&fd), signal))
}

/// The processes of the tree below `root`, parents before children.
pub fn tree(root: Pid) -> Result<Vec<Pid>> {
    let mut all = vec![root];
    let mut at = 0;
    while at < all.len() {
        let children = match proc::children(all[at]) {
            Err(e) if e.kind() != Kind::TargetGone && e.kind() != Kind::NotFound => return Err(e),
            Err(e) if at == 0 => return Err(e),
            found => found.unwrap_or_default(),
        };
        all.extend(children.into_iter().filter(|pid| !is_twin(*pid)));
        at += 1;
    }
    Ok(all)
}

/// A twin of an earlier frame, still being streamed: a child of the target that is not part of it.
fn is_twin(pid: Pid) -> bool {
    super::twin::is_marked(pid)
}

/// Attaches to one thread, which runs on; false if it is dead already.
fn attach(pid: Pid, tid: Pid, is_root: bool) -> Result<bool> {
    match stat::read_thread(pid, tid) {
        Ok(stat) if stat.is_zombie() => return Ok(false),
        Ok(stat) if stat.is_kernel_thread() => return Err(Error::refused(format!("pid {pid} is a thread of the kernel: only user programs can be checkpointed"))),
        Err(e) if is_root && tid == pid => return Err(e),
        Err(_) => return Ok(false),
        Ok(_) => {}
    }
    match ptrace::seize(tid, ptrace::SYSGOOD) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) && !(is_root && tid == pid) => Ok(false),
        Err(e) => Err(explain(pid, e)),
    }
}

fn explain(pid: Pid, e: std::io::Error) -> Error {
    let Ok(status) = Status::read(pid) else { return Error::new(Kind::TargetGone, format!("pid {pid}: no such process")) };
    let tracer = status.number("TracerPid").unwrap_or(0);
    if tracer != 0 {
        let name = proc::text(&proc::path(tracer as Pid, "comm")).unwrap_or_default();
        return Error::refused(format!("pid {pid} is being traced by pid {tracer} ({}): detach that first", name.trim()));
    }
    if e.raw_os_error() == Some(libc::EPERM) {
        let uid = status.numbers("Uid").ok().and_then(|uids| uids.first().copied()).unwrap_or(-1);
        // To root this happens to a process that is just starting a program or exiting.
        let kind = if nix::unistd::geteuid().is_root() { Kind::Busy } else { Kind::Privilege };
        return Error::new(
            kind,
            format!("pid {pid} (uid {uid}) may not be traced by us: run as that user with kernel.yama.ptrace_scope 0, or with CAP_SYS_PTRACE (root)"),
        );
    }
    Error::io(format!("cannot attach to pid {pid}"), e)
}

fn wait_stopped(pid: Pid, tid: Pid) -> Result<Option<Thread>> {
    let stopped_by = match wait_for_stop_of(pid, tid) {
        Ok(Some(Event::GroupStop(signal))) => Some(signal),
        Ok(Some(Event::Gone(_))) => return Ok(None),
        Ok(Some(_)) => None,
        Ok(None) => {
            let wchan = proc::text(&super::task(pid, tid, "wchan")).unwrap_or_default();
            return Err(Error::new(Kind::Busy, format!("pid {pid} thread {tid} does not stop: it sleeps in the kernel at {wchan:?} where no signal reaches it; try again when it is done")));
        }
        // It has started another program, and now has its process's id.
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Err(Error::new(Kind::Busy, format!("pid {pid} is starting another program; try again"))),
        Err(e) => return Err(Error::io(format!("cannot wait for pid {pid} thread {tid}"), e)),
    };
    let read = || -> std::io::Result<(Registers, u64)> {
        let mut regs = ptrace::regs(tid)?;
        let changed = [arch::hide_interruption(&mut regs), rseq::abort(tid, &mut regs)];
        if changed.contains(&true) {
            ptrace::set_regs(tid, &regs)?;
        }
        // Only now that it is stopped, lest it make an unfiltered call. Without CAP_SYS_ADMIN its filters judge our calls too.
        let _ = ptrace::set_options(tid, ptrace::SYSGOOD | ptrace::SUSPEND_SECCOMP);
        Ok((regs, ptrace::sigmask(tid)?))
    };
    let (regs, sigmask) = read().map_err(|_| super::gone(pid))?;
    if arch::is_32bit(&regs) {
        return Err(Error::refused(format!("pid {pid} thread {tid} runs 32-bit code; only 64-bit programs can be checkpointed")));
    }
    Ok(Some(Thread { tid, regs, sigmask, call: None, stopped_by, parked: Vec::new() }))
}

/// Waits for a thread that others wait for as well; longer if all that it needs is a processor.
fn wait_for_stop_of(pid: Pid, tid: Pid) -> std::io::Result<Option<Event>> {
    let begun = Instant::now();
    loop {
        match wait_for_stop(tid, Instant::now() + STOP_WITHIN)? {
            None if begun.elapsed() < RUN_WITHIN && stat::read_thread(pid, tid).is_ok_and(|stat| stat.is_runnable()) => {}
            stop => return Ok(stop),
        }
    }
}

/// Waits until our own stop arrives; signals that come first are delivered, as they would have been. `None` past the deadline.
fn wait_for_stop(tid: Pid, deadline: Instant) -> std::io::Result<Option<Event>> {
    let mut spins = 0;
    loop {
        match ptrace::wait(tid, false)? {
            Some(Event::Signal(signal)) => ptrace::cont(tid, signal)?,
            Some(Event::Event(_) | Event::Syscall) => ptrace::cont(tid, 0)?,
            Some(event) => return Ok(Some(event)),
            None if Instant::now() > deadline => return Ok(None),
            None if spins < 200 => {
                spins += 1;
                std::thread::yield_now();
            }
            None => std::thread::sleep(Duration::from_micros(50)),
        }
    }
}
