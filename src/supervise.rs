//! Being the parent of a program: forwarding signals, reaping orphans, and passing on how it ended.

use nix::errno::Errno;
use nix::sys::signal::{kill, SigSet, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid as NixPid;

use crate::error::{Context, Result};
use crate::proc::Pid;

/// What a supervisor passes on to its program.
const FORWARDED: [Signal; 8] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCONT, Signal::SIGWINCH];

/// Blocks the signals that `until_exit` waits for. Call it before the program exists, so that none is lost.
pub fn hold_signals() -> Result<SigSet> {
    let mut set = SigSet::empty();
    FORWARDED.iter().chain([&Signal::SIGCHLD]).for_each(|signal| set.add(*signal));
    set.thread_block().context("cannot block signals")?;
    Ok(set)
}

/// Reaps children and forwards signals until `root` ends; returns its status as a shell would give it.
pub fn until_exit(root: Pid, held: &SigSet) -> Result<i32> {
    loop {
        if let Some(status) = reap(root)? {
            return Ok(status);
        }
        let signal = held.wait().context("cannot wait for a signal")?;
        if signal != Signal::SIGCHLD {
            // It may have ended just now; the next round tells.
            let _ = kill(NixPid::from_raw(root), signal);
        }
    }
}

fn reap(root: Pid) -> Result<Option<i32>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid.as_raw() == root => return Ok(Some(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == root => return Ok(Some(128 + signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e).context("cannot wait for the program"),
        }
    }
}
