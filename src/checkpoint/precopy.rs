//! Rounds while the target runs: look what was written, copy it, look again, until little is left to copy in the pause.
//!
//! Whatever a look finds is *owed* to the frame until it is copied, so that no way out of here can lose a page. Large rounds go
//! straight into the frame, small ones into memory, because the time until the next look decides how much is written meanwhile.
//! Pages that are written in every small round (hot pages) stay owed, and are copied once, in the pause.
//!
//! Protecting pages of a program that runs costs a message between processors for every 2 MiB that it has written to. Where much is
//! written all over the place, looks become so long that they find ever as much; then one look is made in a short stop, in which
//! nobody needs a message and nothing is written. An increment that will find much of a memory that is not too large makes its first
//! look in such a stop.

use std::thread;
use std::time::Duration;

use super::aside::{self, Aside};
use super::calls::Calls;
use super::instant;
use super::shared::Look;
use super::watch::{Space, Watch};
use crate::error::{Kind, Result};
use crate::proc::Pid;
use crate::sys::sched::Urgent;
use crate::sys::PAGE;
use crate::track::Ranges;
use crate::tracee::memory::Memory;
use crate::transfer::Feed;

/// Rounds up to this size in bytes are copied into memory.
const SMALL: u64 = 8 << 20;
/// This little is not worth another round.
const FEW: u64 = 64 * PAGE;
/// More than this in a small round is worth a stop.
const MANY: u64 = 512 * PAGE;
/// More than this is not worth another round: it takes as long to copy as to write.
const LARGE: u64 = 128 << 20;
/// A look at so much in a stop takes a few milliseconds.
const QUICK: u64 = 5 << 30;
/// Large rounds at most; each must be a good deal smaller than the one before anyhow.
const LARGE_ROUNDS: u32 = 12;
/// Small rounds at most.
const SMALL_ROUNDS: u32 = 4;

/// How the rounds went.
#[derive(Debug, Default)]
pub struct Rounds {
    /// How many there were.
    pub count: u32,
    /// The last ones did not get smaller: the target writes as fast as pages can be copied.
    pub diverged: bool,
    /// Bytes that the pause will have to copy, going by the last round.
    pub expected: u64,
}

/// Copies what is not in the store yet straight into the frame, everything there is if it is to be `full`, until little is left.
/// Makes room aside for that, within `limit` bytes.
pub fn large_rounds(watch: &mut Watch, feed: &mut Feed<'_>, aside: &mut Aside, full: bool, stop: &mut Stop<'_>, limit: u64) -> Result<Rounds> {
    let mut rounds = Rounds::default();
    let mut bytes = first_look(watch, full, stop)?;
    while bytes > SMALL {
        let before = bytes;
        feed.announce(rounds.count, bytes)?;
        // Fresh memory may take the kernel longer than the copying of later rounds: now there is time for it. By what was written
        // during the first round, a fraction will be written during the last ones.
        let wanted = if rounds.count == 1 { (bytes / 4).min(LARGE).min(limit) } else { 0 };
        thread::scope(|scope| {
            let making = (wanted > 0).then(|| scope.spawn(move || aside::room(wanted)));
            let written = !full || rounds.count > 0;
            copy(watch, |space, memory, todo| feed.memory_of_running(space.object, memory, todo.as_slice(), rounds.count, written).map(Ranges::of))?;
            watch.shared().copy(u64::MAX, |object, memory, todo| feed.ranges(object, todo.as_slice(), rounds.count, |offset, bytes| memory.read_at(offset, bytes)))?;
            match making.map(|making| making.join()) {
                Some(Ok(made)) => made.map(|room| aside.add(room)),
                _ => Ok(()),
            }
        })?;
        rounds.count += 1;
        // What is still on its way to the store would take the time of what follows.
        feed.settle()?;
        bytes = look(watch, Look::Further)?;
        if bytes > SMALL && (rounds.count >= LARGE_ROUNDS || bytes > before / 4 * 3) {
            rounds.diverged = bytes > LARGE;
            break;
        }
    }
    rounds.expected = bytes;
    Ok(rounds)
}

/// Copies the little that is left into memory, again and again, until it gets no less, or until a stop has made it little.
pub fn small_rounds(watch: &mut Watch, aside: &mut Aside, rounds: &mut Rounds, stop: &mut Stop<'_>, limit: u64) -> Result<()> {
    if rounds.diverged {
        return Ok(());
    }
    aside.reserve(rounds.expected.min(limit))?;
    let _urgent = Urgent::begin();
    let (mut bytes, mut last) = (rounds.expected, false);
    for round in 1.. {
        copy(watch, |space, memory, todo| match aside.held() + todo.bytes() <= limit {
            true => aside.copy(space.object, memory, todo, rounds.count),
            false => Ok(todo.clone()),
        })?;
        // More than that at once does not go into memory: somebody may have written to all of it.
        watch.shared().copy(SMALL, |object, memory, todo| aside.place(object, todo, rounds.count, |bytes| memory.read(todo.as_slice(), bytes)))?;
        rounds.count += 1;
        if last {
            break;
        }
        let before = bytes;
        // What a stop finds is copied much faster than it was written.
        bytes = if before > MANY { stop.during(|| look(watch, Look::Further))? / 4 } else { look(watch, if round > 1 { Look::Small } else { Look::Further })? };
        last = before > MANY || round >= SMALL_ROUNDS || bytes <= FEW || bytes > before / 4 * 3;
    }
    // The pause will find about as much as the last round did.
    rounds.expected = bytes + watch.spaces().iter().map(|space| space.owed.bytes()).sum::<u64>() + watch.shared().owed();
    Ok(())
}

/// Stops the tree for a look.
pub struct Stop<'a> {
    pub root: Pid,
    pub calls: &'a mut Calls,
    /// How long all such stops took.
    pub took: Duration,
}

impl Stop<'_> {
    fn during(&mut self, look: impl FnOnce() -> Result<u64>) -> Result<u64> {
        let _urgent = Urgent::begin();
        let mut frozen = instant::seize(self.root)?;
        let begun = frozen.begun;
        self.calls.exchange(&mut frozen);
        let looked = look();
        frozen.thaw();
        self.took += begun.elapsed();
        looked
    }
}

/// Whether the first look is worth a stop: that of an increment which will find much, as the last one did. While it is copied little
/// is written, so no other stop will be needed.
fn stops_first(watch: &mut Watch, full: bool) -> bool {
    !full && watch.written > SMALL && watch.spaces().iter().map(|space| space.tracker.populated()).sum::<u64>() <= QUICK
}

/// The first look of a frame: what was written since the last frame, or everything; returns how many bytes.
fn first_look(watch: &mut Watch, full: bool, stop: &mut Stop<'_>) -> Result<u64> {
    let private = match stops_first(watch, full) {
        true => stop.during(|| first_private(watch, full))?,
        false => first_private(watch, full)?,
    };
    watch.written = if full { 0 } else { private };
    Ok(private + watch.look_at_shared(Look::First { full })?)
}

fn first_private(watch: &mut Watch, full: bool) -> Result<u64> {
    each(watch, |space| {
        let written = space.tracker.round()?;
        space.uncommitted = match full {
            true => space.tracker.everything()?,
            false => space.uncommitted.union(&written),
        };
        space.owed = space.uncommitted.clone();
        Ok(space.owed.bytes())
    })
}

/// A further look; returns how many bytes are to be copied now.
fn look(watch: &mut Watch, look: Look) -> Result<u64> {
    let private = each(watch, |space| {
        let written = space.tracker.round()?;
        space.uncommitted = space.uncommitted.union(&written);
        space.owed = space.owed.union(&written);
        if look == Look::Small {
            space.hot = space.hot.union(&written.intersect(&space.recent));
            space.recent = written;
        }
        Ok(space.owed.minus(&space.hot).bytes())
    })?;
    Ok(private + watch.look_at_shared(look)?)
}

/// Spaces that have ended in the meantime write nothing more.
fn each(watch: &mut Watch, mut look: impl FnMut(&mut Space) -> Result<u64>) -> Result<u64> {
    let mut bytes = 0;
    for space in watch.spaces() {
        bytes += match look(space) {
            // One that is exiting has no memory any more, and is not dead yet.
            Err(e) if e.kind() == Kind::TargetGone || space.has_ended() => 0,
            looked => looked?,
        };
    }
    Ok(bytes)
}

/// Copies what is owed and not hot; `with` returns the pages that it could not read.
fn copy(watch: &mut Watch, mut with: impl FnMut(&Space, &Memory, &Ranges) -> Result<Ranges>) -> Result<()> {
    for space in watch.spaces() {
        let todo = space.owed.minus(&space.hot);
        if todo.is_empty() {
            continue;
        }
        // A space that has ended, by exit or exec, shows at the stop.
        let Ok(memory) = Memory::open(space.tracker.pid) else { continue };
        let missing = match with(space, &memory, &todo) {
            Err(e) if e.kind() == Kind::TargetGone => continue,
            copied => copied?,
        };
        space.owed = space.owed.minus(&todo).union(&missing);
    }
    Ok(())
}
