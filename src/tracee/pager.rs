//! Pagers, told by their names: processes that still bring memory to a second instance that runs already.

use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::proc::{self, Pid};

/// What a pager calls itself.
pub const PAGER: &std::ffi::CStr = c"frame-pager";
/// What the guardian of a pager calls itself.
pub const GUARDIAN: &std::ffi::CStr = c"frame-guardian";

/// The pager that brings memory to process `pid`: it has a descriptor of it.
pub fn of(pid: Pid) -> Option<Pid> {
    let names = |&other: &Pid| proc::text(&proc::path(other, "comm")).is_ok_and(|name| name.trim().as_bytes() == PAGER.to_bytes());
    let cares = |&pager: &Pid| {
        let numbers = proc::numbers(&proc::path(pager, "fdinfo")).unwrap_or_default();
        numbers.into_iter().any(|number| is_of(&proc::text(&proc::path(pager, &format!("fdinfo/{number}"))).unwrap_or_default(), pid))
    };
    proc::numbers(std::path::Path::new("/proc")).ok()?.into_iter().filter(names).find(cares)
}

fn is_of(fdinfo: &str, pid: Pid) -> bool {
    fdinfo.lines().filter_map(|line| line.strip_prefix("Pid:")).any(|of| of.trim().parse() == Ok(pid))
}

/// Waits until all memory of process `pid` is in place.
pub fn wait(pid: Pid) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(120);
    let deadline = Instant::now() + PATIENCE;
    while let Some(pager) = of(pid) {
        if Instant::now() > deadline {
            let what = format!("pid {pid} was restored with --lazy, and its pager {pager} still brings its memory after {} s; try again later", PATIENCE.as_secs());
            return Err(Error::new(Kind::Busy, what));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_a_process_names_it() {
        let text = "pos:\t0\nflags:\t02000002\nPid:\t4711\nNSpid:\t4711\n";
        assert!(is_of(text, 4711) && !is_of(text, 471) && !is_of("pos:\t0\n", 0));
        assert_eq!(of(1), None);
    }
}
