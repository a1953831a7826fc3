//! signalfd: it holds nothing but a mask; the pending signals are the process's.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::scan::Found;
use crate::error::{Context, Result};
use crate::sys::fd_extra;

/// A signalfd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// The signals it accepts, bit 0 for signal 1.
    pub mask: u64,
}

/// Reads the mask from fdinfo.
pub fn capture(found: &Found) -> Result<State> {
    let mask = found.info.hex("sigmask").ok_or_else(|| found.refused("a signalfd whose mask this kernel does not show"))?;
    Ok(State { mask })
}

/// Makes it anew.
pub fn restore(state: &State) -> Result<OwnedFd> {
    fd_extra::signals(state.mask).context("cannot make a signalfd")
}
