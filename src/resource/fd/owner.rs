//! Who is told of input and output (F_SETOWN, F_SETSIG, O_ASYNC).

use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use super::scan::Found;
use super::{Capture, Description};
use crate::error::Result;
use crate::sys::fd_extra::{fcntl, fcntl_with, Owner};
use crate::tracee::{blank::Blank, Remote, RemoteExt};

const F_SETOWN_EX: u64 = 15;
const F_GETOWN_EX: i32 = 16;
const F_SETSIG: u64 = 10;
const F_GETSIG: i32 = 11;

/// Owner and signal of a description.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP.
    pub kind: i32,
    /// The id, as the tree numbers it; 0 for none.
    pub id: i32,
    /// The signal; 0 for SIGIO.
    pub signal: i32,
}

/// Asks for the owner; `None` if there is nothing to restore.
pub fn capture(capture: &mut Capture<'_>, found: &Found) -> Result<Option<State>> {
    if found.info.flags & libc::O_PATH != 0 {
        return Ok(None);
    }
    let mut owner = Owner::default();
    fcntl_with(found.fd.as_fd(), F_GETOWN_EX, &mut owner).map_err(|e| found.failed("ask for the owner of", e))?;
    let signal = fcntl(found.fd.as_fd(), F_GETSIG, 0).unwrap_or(0);
    if owner.id == 0 && signal == 0 {
        return Ok(None);
    }
    let id = if owner.id == 0 { 0 } else { capture.inner(owner.id).unwrap_or(0) };
    Ok(Some(State { kind: owner.kind, id, signal }))
}

/// Names the owner again, in the process that holds the description as `fd`; last, since signals may come from then on.
pub fn connect(description: &Description, fd: i32, blank: &mut Blank, notes: &mut Vec<String>) -> Result<()> {
    if let Some(owner) = &description.owner {
        let at = blank.put(&[owner.kind.to_ne_bytes(), owner.id.to_ne_bytes()].concat())?;
        if owner.id != 0 && blank.call(libc::SYS_fcntl, [fd as u64, F_SETOWN_EX, at, 0, 0, 0]).is_err() {
            notes.push(format!("pid {} fd {fd}: signals of input and output went to process {}, which is not there", blank.pid(), owner.id));
        }
        blank.must("choose a descriptor's signal", libc::SYS_fcntl, [fd as u64, F_SETSIG, owner.signal as u64, 0, 0, 0])?;
    }
    if description.flags & libc::O_ASYNC != 0 {
        let flags = description.flags as u64;
        blank.must("ask for signals of a descriptor", libc::SYS_fcntl, [fd as u64, libc::F_SETFL as u64, flags, 0, 0, 0])?;
    }
    Ok(())
}
