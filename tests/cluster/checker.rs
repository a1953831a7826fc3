//! Judges after the fact, from what the service itself wrote: who ran when, and what each instance remembered.

use std::path::Path;

/// One line of the service's log.
#[derive(Debug, Clone, Copy)]
pub struct Tick {
    /// Boot-time clock.
    pub at_ms: u64,
    /// The pid namespace: an instance.
    pub space: u64,
    pub number: u64,
}

/// A committed frame, as the store had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Commit {
    /// Boot-time clock, when it was safe on storage; its commit followed.
    pub at_ms: u64,
    pub token: i64,
    pub seq: u64,
}

/// All lines so far; a last one without an end is not there yet.
pub fn read(path: &Path) -> Vec<Tick> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| tick(line).unwrap_or_else(|| panic!("a torn line: {line:?}"))).collect()
}

fn tick(line: &str) -> Option<Tick> {
    let mut words = line.split(' ');
    let at_ms = words.next()?.parse().ok()?;
    let space = words.next()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok()?;
    Some(Tick { at_ms, space, number: words.next()?.parse().ok()? })
}

/// An instance: from its first line to its last.
#[derive(Debug)]
pub struct Life {
    pub space: u64,
    pub from_ms: u64,
    pub to_ms: u64,
    pub first: u64,
    pub last: u64,
}

/// Lives in the order of their beginning. The number of a namespace is used again once it is gone: then the count jumps back to a
/// frame's, or, where the last tick was in the frame, there is a gap that no busy machine explains.
pub fn lives(ticks: &[Tick]) -> Vec<Life> {
    const GAP_MS: u64 = 1500;
    let mut lives: Vec<Life> = Vec::new();
    for tick in ticks {
        match lives.iter_mut().rev().find(|life| life.space == tick.space).filter(|life| life.last + 1 == tick.number && tick.at_ms < life.to_ms + GAP_MS) {
            Some(life) => (life.to_ms, life.last) = (tick.at_ms, tick.number),
            None => lives.push(Life { space: tick.space, from_ms: tick.at_ms, to_ms: tick.at_ms, first: tick.number, last: tick.number }),
        }
    }
    lives
}

/// No two instances ran at once.
pub fn one_at_a_time(lives: &[Life]) {
    for pair in lives.windows(2) {
        assert!(pair[1].from_ms >= pair[0].to_ms, "two instances ran at once: {pair:?}");
    }
}

/// Each life goes on where a frame of the one before was taken, and no number that a committed frame holds is lost.
pub fn nothing_lost(lives: &[Life], commits: &[Commit], ticks: &[Tick]) {
    for pair in lives.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        assert!(after.first <= before.last + 1, "instance {} knows numbers that nobody wrote: {pair:?}", after.space);
        // A frame begins after the one before it was committed. One more in between makes up for clocks that are read one after the other.
        let committed: Vec<&Commit> = commits.iter().filter(|commit| (before.from_ms..=before.to_ms).contains(&commit.at_ms)).collect();
        let Some(older) = committed.len().checked_sub(3).map(|at| committed[at]) else { continue };
        let written = ticks.iter().filter(|tick| tick.space == before.space && (before.from_ms..older.at_ms).contains(&tick.at_ms)).map(|tick| tick.number).next_back().unwrap_or(0);
        assert!(after.first > written, "instance {} begins with {}, but {written} was written before the last committed frame was begun: {pair:?}", after.space, after.first);
    }
}
