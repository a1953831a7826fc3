//! Looking at processes, and ending those of a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

/// All process ids.
pub fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// State letter and parent.
pub fn stat(pid: i32) -> Option<(char, i32)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    // The name may hold blanks and parentheses; the last one ends it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// When it started, in ticks since the boot: with the id it names one process for good.
pub fn started(pid: i32) -> Option<u64> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Value of a line of /proc/PID/status.
pub fn status(pid: i32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
}

/// There, even as a zombie.
pub fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// There and no zombie.
pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// The processes and everything below them; zombies, which no signal ends, are left out.
pub fn with_descendants(mut pids: BTreeSet<i32>) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = all().into_iter().filter_map(|pid| Some((pid, stat(pid)?.1))).collect();
    // Ids are not ordered by age, so repeat until nothing is added.
    loop {
        let more: Vec<i32> = parents.iter().filter(|(pid, parent)| pids.contains(parent) && !pids.contains(pid)).map(|(pid, _)| *pid).collect();
        if more.is_empty() {
            return pids.into_iter().filter(|&pid| alive(pid)).collect();
        }
        pids.extend(more);
    }
}

/// Children of a process, of any kind.
pub fn children(pid: i32) -> Vec<i32> {
    all().into_iter().filter(|&child| stat(child).is_some_and(|(_, parent)| parent == pid)).collect()
}

/// SIGKILL for all, stopped before: none may act on the death of another.
pub fn kill_at_once(pids: &[i32]) {
    for how in [Signal::SIGSTOP, Signal::SIGKILL] {
        pids.iter().for_each(|&pid| signal(pid, how));
    }
}

/// Any signal; it may have ended in between.
pub fn signal(pid: i32, signal: Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}
