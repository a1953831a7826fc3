//! timerfd: made at open, armed when everything else is in place, so that no time passes for it during the restore.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::info::{Directory, Info};
use super::scan::Found;
use crate::error::{Context, Result};
use crate::proc::Pid;
use crate::sys::{fd::ioctl_set, fd_extra};

const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
const NANO: i128 = 1_000_000_000;

/// A timerfd; times in nanoseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// CLOCK_*.
    pub clock: i32,
    /// TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET.
    pub flags: i32,
    /// Expirations that nobody has read.
    pub ticks: u64,
    /// Time left; 0 if disarmed or past.
    pub left_ns: i64,
    /// For an absolute timer: when it is due by its clock.
    pub due_ns: Option<i64>,
    /// Period; 0 for none.
    pub interval_ns: i64,
}

/// Reads the timer from fdinfo: reading the descriptor would reset it.
pub fn capture(found: &Found) -> Result<State> {
    // Asking for the time makes the kernel count the periods that have gone by unread; only then does fdinfo tell them.
    fd_extra::timer_left(found.fd.as_fd()).map_err(|e| found.failed("ask for the time left of", e))?;
    let own = Directory::open(std::process::id() as Pid)?;
    let parsed = parse(&Info::read(&own, found.fd.as_raw_fd())?).ok_or_else(|| found.refused("a timerfd whose state this kernel does not show"))?;
    let due_ns = match parsed {
        State { flags, left_ns, .. } if flags & libc::TFD_TIMER_ABSTIME == 0 || left_ns == 0 => None,
        _ => Some((now(parsed.clock).map_err(|e| found.failed("read the clock of", e))? + i128::from(parsed.left_ns)) as i64),
    };
    Ok(State { due_ns, ..parsed })
}

fn parse(info: &Info) -> Option<State> {
    let time = |key| {
        let (seconds, nanos) = info.row(key)?.trim_matches(['(', ')']).split_once(", ")?;
        Some(seconds.parse::<i64>().ok()?.saturating_mul(NANO as i64).saturating_add(nanos.parse().ok()?))
    };
    Some(State {
        clock: info.number("clockid")? as i32,
        flags: i32::from_str_radix(info.row("settime flags")?, 8).ok()?,
        ticks: info.number("ticks")?,
        left_ns: time("it_value")?,
        due_ns: None,
        interval_ns: time("it_interval")?,
    })
}

fn now(clock: i32) -> std::io::Result<i128> {
    let now = fd_extra::clock(clock)?;
    Ok(i128::from(now.tv_sec) * NANO + i128::from(now.tv_nsec))
}

/// Makes it anew, disarmed.
pub fn restore(state: &State) -> Result<OwnedFd> {
    fd_extra::timer(state.clock).context("cannot make a timerfd")
}

/// Arms it.
pub fn arm(state: &State, fd: &OwnedFd) -> Result<()> {
    let is_wall = matches!(state.clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_ALARM);
    // By the wall clock, a due time stays what it was; by the others, whose zero may have moved, the time left does.
    let (flags, value) = match state.due_ns {
        Some(due) if is_wall => (state.flags, due),
        _ => (0, state.left_ns),
    };
    if value > 0 {
        let spec = libc::itimerspec { it_interval: timespec(state.interval_ns), it_value: timespec(value) };
        fd_extra::arm_timer(fd.as_fd(), flags, &spec).context("cannot arm a timerfd")?;
    }
    if state.ticks > 0 {
        ioctl_set(fd.as_fd(), TFD_IOC_SET_TICKS, &state.ticks).context("cannot set a timerfd's expirations (needs CONFIG_CHECKPOINT_RESTORE)")?;
    }
    Ok(())
}

fn timespec(nanos: i64) -> libc::timespec {
    libc::timespec { tv_sec: nanos / NANO as i64, tv_nsec: nanos % NANO as i64 }
}
