//! Whether a process outside the tree can write to memory that the tree shares: then nobody can say what is written.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::error::Result;
use crate::proc::{self, maps, maps::Vma, stat, Pid};

/// The list of processes is read again while it has new ones, but not for ever.
const LISTINGS: u32 = 16;

/// Whether a process that is neither in `tree` nor we ourselves maps the anonymous memory behind `vma`, which was made at `born`.
/// Such a mapping is passed on by a fork only, so processes that came while others were looked at are looked at too.
pub fn is_mapped(tree: &[Pid], vma: &Vma, born: Option<SystemTime>) -> Result<bool> {
    let mut seen: HashSet<Pid> = tree.iter().copied().chain([std::process::id() as Pid]).collect();
    // Whoever maps it and is older than it has made it. All others are children of that one, and younger than the memory.
    let older = |pid: Pid| born.is_some_and(|born| is_older(pid, born));
    let made_here = tree.iter().any(|&pid| older(pid) && maps_it(pid, vma) == Some(true));
    for _ in 0..LISTINGS {
        let new: Vec<Pid> = proc::numbers(Path::new("/proc"))?.into_iter().filter(|pid| seen.insert(*pid)).collect();
        if new.is_empty() {
            return Ok(false);
        }
        // Into some even root may not look.
        if new.into_iter().any(|pid| maps_it(pid, vma).unwrap_or_else(|| !(made_here && older(pid)))) {
            return Ok(true);
        }
    }
    // Processes come faster than they can be looked at.
    Ok(true)
}

/// A process that has ended meanwhile maps nothing; of one that we may not look into nobody knows.
fn maps_it(pid: Pid, vma: &Vma) -> Option<bool> {
    match fs::read(proc::path(pid, "maps")) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Some(false),
        Err(_) => None,
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            Some(text.lines().filter(|line| line.ends_with(&vma.name)).any(|line| maps::parse(line).is_ok_and(|found| found.iter().any(|found| found.shared && same(found, vma)))))
        }
    }
}

/// Whether a process certainly started before `instant`; the kernel tells that in hundredths of a second.
fn is_older(pid: Pid, instant: SystemTime) -> bool {
    const MARGIN: Duration = Duration::from_millis(10);
    let Ok(stat) = stat::read(pid) else { return false };
    let since_boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from);
    let booted = since_boot.ok().and_then(|up| SystemTime::now().checked_sub(up));
    booted.is_some_and(|booted| booted + Duration::from_millis(stat.start_time * 10) + MARGIN < instant)
}

/// Whether two mappings show the same memory.
pub fn same(a: &Vma, b: &Vma) -> bool {
    (&a.device, a.inode, &a.name) == (&b.device, b.inode, &b.name)
}
