//! eventfd.

use std::os::fd::OwnedFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

use super::scan::Found;
use crate::error::{Context, Result};

/// An eventfd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Its counter.
    pub count: u64,
    /// EFD_SEMAPHORE.
    pub semaphore: bool,
}

/// Reads the counter from fdinfo: reading the descriptor would reset it.
pub fn capture(found: &Found) -> Result<State> {
    let count = found.info.hex("eventfd-count").ok_or_else(|| found.refused("an eventfd whose counter this kernel does not show"))?;
    Ok(State { count, semaphore: found.info.number("eventfd-semaphore") == Some(1) })
}

/// Makes it anew.
pub fn restore(state: &State) -> Result<OwnedFd> {
    let semaphore = if state.semaphore { EfdFlags::EFD_SEMAPHORE } else { EfdFlags::empty() };
    let fd = EventFd::from_value_and_flags(0, semaphore | EfdFlags::EFD_CLOEXEC).context("cannot make an eventfd")?;
    if state.count > 0 {
        fd.write(state.count).context("cannot set an eventfd's counter")?;
    }
    Ok(fd.into())
}
