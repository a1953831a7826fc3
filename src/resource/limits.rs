//! Resource limits, and what decides who is killed when memory runs out. Read from /proc, which needs no privilege.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::proc::{self, Pid};
use crate::tracee::blank::Blank;
use crate::tracee::{Remote, RemoteExt};

/// Limits of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// (resource number, soft, hard); `u64::MAX` is no limit.
    pub limits: Vec<(u32, u64, u64)>,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: i32,
    /// /proc/PID/coredump_filter.
    pub coredump_filter: u32,
}

/// Names as /proc/PID/limits prints them, in the order of their numbers.
const NAMES: [&str; 16] = [
    "Max cpu time", "Max file size", "Max data size", "Max stack size", "Max core file size", "Max resident set", "Max processes",
    "Max open files", "Max locked memory", "Max address space", "Max file locks", "Max pending signals", "Max msgqueue size",
    "Max nice priority", "Max realtime priority", "Max realtime timeout",
];

/// Reads the limits of a process.
pub fn capture(pid: Pid) -> Result<State> {
    let read = |what: &str| proc::text(&proc::path(pid, what));
    let number = |text: String| text.trim().parse().unwrap_or(0);
    let filter = read("coredump_filter").unwrap_or_default();
    Ok(State {
        limits: parse(&read("limits")?)?,
        oom_score_adj: number(read("oom_score_adj")?),
        coredump_filter: u32::from_str_radix(filter.trim(), 16).unwrap_or(0x33),
    })
}

fn parse(text: &str) -> Result<Vec<(u32, u64, u64)>> {
    let limit = |word: &str| if word == "unlimited" { Some(u64::MAX) } else { word.parse().ok() };
    let mut limits = Vec::new();
    for line in text.lines().skip(1) {
        let found = NAMES.iter().position(|name| line.starts_with(name));
        let words = found.map(|at| line[NAMES[at].len()..].split_whitespace().collect::<Vec<_>>());
        let parsed = (|| Some((found? as u32, limit(words.as_ref()?.first()?)?, limit(words.as_ref()?.get(1)?)?)))();
        limits.push(parsed.ok_or_else(|| Error::refused(format!("a resource limit that this stillframe does not know: {line:?}")))?);
    }
    Ok(limits)
}

/// Sets the limits; what we may not raise stays lower, with a note.
pub fn restore(state: &State, blank: &mut Blank, notes: &mut Vec<String>) -> Result<()> {
    for &(resource, soft, hard) in &state.limits {
        if let Err(e) = set(blank, resource, soft, hard) {
            let (_, ours) = current(blank, resource)?;
            set(blank, resource, soft.min(ours), hard.min(ours)).map_err(|e| Error::io(format!("cannot set limit {:?}", NAMES[resource as usize % 16]), e))?;
            notes.push(format!("process {}: {:?} stays at {ours} instead of {hard} ({e}): raising it needs CAP_SYS_RESOURCE", blank.pid, NAMES[resource as usize % 16]));
        }
    }
    for (what, value) in [("oom_score_adj", state.oom_score_adj.to_string()), ("coredump_filter", format!("{:#x}", state.coredump_filter))] {
        if let Err(e) = fs::write(proc::path(blank.pid, what), &value) {
            notes.push(format!("process {}: cannot set {what} to {value}: {e}", blank.pid));
        }
    }
    Ok(())
}

fn set(blank: &mut Blank, resource: u32, soft: u64, hard: u64) -> Result<(), std::io::Error> {
    let pair = [soft.to_le_bytes(), hard.to_le_bytes()].concat();
    let at = blank.put(&pair).map_err(std::io::Error::other)?;
    blank.call(libc::SYS_prlimit64, [0, u64::from(resource), at, 0, 0, 0]).map(drop)
}

fn current(blank: &mut Blank, resource: u32) -> Result<(u64, u64)> {
    let at = blank.put(&[0; 16])?;
    blank.must("read a limit", libc::SYS_prlimit64, [0, u64::from(resource), 0, at, 0, 0])?;
    let mut raw = [0; 16];
    blank.memory().read(at, &mut raw)?;
    let word = |at: usize| raw[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    Ok((word(0), word(8)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_own_limits_are_understood() {
        let state = super::capture(std::process::id() as i32).unwrap();
        assert_eq!(state.limits.len(), 16);
        assert!(state.limits.iter().any(|&(resource, soft, _)| resource == libc::RLIMIT_NOFILE && soft > 2));
    }
}
