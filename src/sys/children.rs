//! Children of a keeper: starting, waiting for and ending them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::pid_t;
use nix::sys::signal::{SigSet, SigmaskHow};

use super::check;

/// Makes `command` run with exactly the signals of `mask` blocked and with the standard descriptors alone, whatever its starter has.
pub fn start_clean(command: &mut Command, mask: SigSet) -> &mut Command {
    let clean = move || {
        // SAFETY: plain numbers; the descriptors stay open until the exec.
        check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
        Ok(nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?)
    };
    // SAFETY: both calls are async-signal-safe, and the closure touches nothing but its own copy of the mask.
    unsafe { command.pre_exec(clean) }
}

/// Waits for any dead child of whatever kind; its id and wait status, or nothing if `block` is false and none has died.
pub fn reap(block: bool) -> io::Result<Option<(pid_t, i32)>> {
    let mut status = 0;
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(-1, &mut status, flags) }.into()) {
            Ok(0) => return Ok(None),
            // A tracee, stopped: what is left of a restore that failed.
            Ok(_) if libc::WIFSTOPPED(status) => continue,
            Ok(pid) => return Ok(Some((pid as pid_t, status))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const PIDFD_GET_INFO: libc::c_ulong = 0xc040_ff0b;
const PIDFD_INFO_EXIT: u64 = 1 << 3;
const _: () = assert!(std::mem::size_of::<PidfdInfo>() == 0x40);

/// The wait status of a process that is dead and waited for, from a descriptor opened while it lived (Linux 6.15).
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: `info` is live and of the size that the request number states.
    let asked = check(unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &mut info) }.into());
    (asked.is_ok() && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}

static ROOT: AtomicI32 = AtomicI32::new(0);

extern "C" fn end_now(signal: i32) {
    let root = ROOT.load(Ordering::Relaxed);
    // SAFETY: kill and _exit are async-signal-safe; `root` is above 1, so that -root is its group alone.
    unsafe {
        libc::kill(root, libc::SIGKILL);
        libc::kill(-root, libc::SIGKILL);
        libc::_exit(128 + signal);
    }
}

/// From now on any of `signals` kills process `root` and its group, and ends us, in the middle of whatever we do.
pub fn end_at_once_on(signals: &SigSet, root: pid_t) -> io::Result<()> {
    if root <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    ROOT.store(root, Ordering::Relaxed);
    let action = nix::sys::signal::SigAction::new(nix::sys::signal::SigHandler::Handler(end_now), nix::sys::signal::SaFlags::empty(), SigSet::all());
    for signal in signals.iter() {
        // SAFETY: the handler makes async-signal-safe calls only.
        unsafe { nix::sys::signal::sigaction(signal, &action)? };
    }
    signals.thread_unblock()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_status_is_known_after_the_wait() {
        let mut child = Command::new("sh").args(["-c", "read line; exit 7"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pidfd = super::super::pidfd::open(child.id() as pid_t).unwrap();
        assert_eq!(exit_status(pidfd.as_fd()), None);
        child.wait().unwrap();
        // Kernels before 6.15 do not tell.
        if let Some(status) = exit_status(pidfd.as_fd()) {
            assert_eq!(status, 7 << 8);
        }
    }

    #[test]
    fn nobody_is_killed_by_mistake() {
        for root in [i32::MIN, -1, 0, 1] {
            assert!(end_at_once_on(&SigSet::empty(), root).is_err());
        }
    }
}
