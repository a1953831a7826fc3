//! Process descriptors.

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::scan::Found;
use super::{Capture, Description};
use crate::error::{Context, Error, Result};
use crate::proc::Pid;
use crate::sys::{fd_extra, pidfd};
use crate::tracee::{blank::Blank, Remote, RemoteExt};

/// A pidfd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The process, as the tree numbers it; `None` if it is dead and gone.
    pub process: Option<Pid>,
}

const PIDFD_THREAD: i32 = libc::O_EXCL;

/// Reads from fdinfo whom it stands for.
pub fn capture(capture: &mut Capture<'_>, found: &Found) -> Result<State> {
    let outer: Pid = found.info.row("Pid").and_then(|text| text.parse().ok()).unwrap_or(0);
    if outer == -1 {
        return Ok(State { process: None });
    }
    let leader = if found.info.flags & PIDFD_THREAD != 0 { thread_group(outer) } else { outer };
    if outer == 0 || !capture.in_tree(leader) {
        return Err(found.refused(&format!("a pidfd of process {outer}, which is not part of the tree")));
    }
    Ok(State { process: capture.inner(outer) })
}

fn thread_group(tid: Pid) -> Pid {
    crate::proc::status::Status::read(tid).and_then(|status| status.number("Tgid")).map_or(tid, |tgid| tgid as Pid)
}

/// Makes a pidfd of a process that is dead.
pub fn restore_dead(description: &Description) -> Result<OwnedFd> {
    let flags = (description.flags & PIDFD_THREAD) as u32;
    fd_extra::dead_process(flags).context("cannot make a pidfd of a dead process")
}

/// Makes a pidfd in `blank`, whose pid namespace is the tree's, and fetches it.
pub fn restore_live(process: Pid, description: &Description, blank: &mut Blank) -> Result<OwnedFd> {
    let flags = (description.flags & (PIDFD_THREAD | libc::O_NONBLOCK)) as u64;
    let made = blank.must(&format!("open a pidfd of process {process}"), libc::SYS_pidfd_open, [process as u64, flags, 0, 0, 0, 0])?;
    let fetch = || pidfd::get(pidfd::open(blank.pid())?.as_fd(), made as i32);
    let fd = fetch().map_err(|e| Error::io(format!("pid {}: cannot fetch a pidfd", blank.pid()), e))?;
    blank.must("close a pidfd", libc::SYS_close, [made, 0, 0, 0, 0, 0])?;
    Ok(fd)
}
