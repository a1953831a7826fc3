//! A service that outlives its process, its server and its standby: agents on a shared store of cluster state.

use nix::time::{clock_gettime, ClockId};

pub mod agent;
pub mod client;
pub mod config;
pub mod decide;
mod net;
pub mod operate;
pub mod state;
pub mod view;
mod vnode;
mod warden;

/// The boot-time clock in milliseconds; it counts suspends and no change of the wall clock.
fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux has this clock");
    now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000
}
