//! The watch over a tree's memory from one frame to the next: which address spaces are tracked, and what of them is not in the
//! store yet.

use std::collections::HashMap;

use super::calls::Calls;
use super::shared::{Look, Shared};
use crate::error::{Error, Kind, Result};
use crate::proc::{self, maps, stat, Pid};
use crate::resource::contents::Contents;
use crate::sys::kcmp::{self, Object};
use crate::sys::sched::Urgent;
use crate::track::forks::Forked;
use crate::track::{self, Last, Ranges, Tracker};
use crate::tracee::seize::{self, Frozen};
use crate::tracee::visit::{Site, Visit};

/// One tracked address space.
#[derive(Debug)]
pub struct Space {
    /// Tells what it writes.
    pub tracker: Tracker,
    /// Its object in the frame that is being taken.
    pub object: u32,
    /// Its object in the last committed frame, if it is in there.
    pub base: Option<u32>,
    /// Written since the last committed frame, as far as rounds have told.
    pub uncommitted: Ranges,
    /// Written, and not copied yet into the frame that is being taken.
    pub owed: Ranges,
    /// Found written by the last small round.
    pub recent: Ranges,
    /// Written in one small round after the other.
    pub hot: Ranges,
    /// The last look.
    pub last: Last,
}

impl Space {
    fn new(tracker: Tracker) -> Space {
        Space { tracker, object: 0, base: None, uncommitted: Ranges::default(), owed: Ranges::default(), recent: Ranges::default(), hot: Ranges::default(), last: Last::default() }
    }

    /// Whether its process is gone, or dead.
    pub fn has_ended(&self) -> bool {
        !stat::read(self.tracker.pid).is_ok_and(|stat| !stat.is_zombie())
    }
}

/// All tracked address spaces of a tree.
#[derive(Debug, Default)]
pub struct Watch {
    spaces: Vec<Space>,
    /// Processes that cannot be tracked, and were said to be.
    given_up: Vec<Pid>,
    root: Pid,
    shared: Shared,
    /// What the first look of the last increment found, in bytes.
    pub written: u64,
}

impl Watch {
    /// Begins to track address spaces that are not tracked yet, in a stop of its own if there are any; returns how long that was
    /// in nanoseconds, and what cannot be tracked and why.
    pub fn arm(&mut self, root: Pid, calls: &mut Calls) -> Result<(u64, Vec<String>)> {
        let armed = self.arm_spaces(root, calls)?;
        self.root = root;
        self.shared.discover(&self.spaces)?;
        Ok(armed)
    }

    fn arm_spaces(&mut self, root: Pid, calls: &mut Calls) -> Result<(u64, Vec<String>)> {
        self.spaces.retain(|space| !space.tracker.is_dead() && !space.has_ended());
        let known = |pid: &Pid| self.spaces.iter().any(|space| space.tracker.pid == *pid) || self.given_up.contains(pid);
        if seize::tree(root)?.iter().all(|pid| known(pid) || self.shares_memory(*pid)) {
            return Ok((0, Vec::new()));
        }
        let urgent = Urgent::begin();
        let mut frozen = super::instant::seize(root)?;
        let begun = frozen.begun;
        calls.exchange(&mut frozen);
        let mut notes = Vec::new();
        for at in 0..frozen.processes.len() {
            let pid = frozen.processes[at].pid;
            if frozen.processes[at].is_zombie() || known_or_shared(self, pid) {
                continue;
            }
            match inject(&mut frozen, at) {
                Ok(tracker) => self.spaces.push(Space::new(tracker)),
                Err(e) if e.kind() == Kind::TargetGone => return Err(e),
                Err(e) => {
                    notes.push(format!("{e}; its pages are frozen by a fork"));
                    self.given_up.push(pid);
                }
            }
        }
        frozen.thaw();
        drop(urgent);
        Ok((super::nanos(begun.elapsed()), notes))
    }

    /// Whether the memory of `pid` is tracked by way of another process: a child of vfork, or a thread in all but name.
    fn shares_memory(&self, pid: Pid) -> bool {
        self.spaces.iter().any(|space| space.tracker.pid != pid && kcmp::shares(pid, space.tracker.pid, Object::Memory).unwrap_or(false))
    }

    /// Gives every space its object in the frame that begins.
    pub fn number(&mut self, contents: &mut Contents) {
        for space in &mut self.spaces {
            space.object = contents.object();
            (space.owed, space.recent, space.hot) = Default::default();
            space.last = Last::default();
        }
        self.shared.number(contents);
    }

    /// Memory that the spaces share.
    pub fn shared(&mut self) -> &mut Shared {
        &mut self.shared
    }

    /// Looks while the tree runs; returns how many bytes of shared memory are to be copied now.
    pub fn look_at_shared(&mut self, look: Look) -> Result<u64> {
        self.shared.look(self.root, &self.spaces, look)
    }

    /// All tracked spaces.
    pub fn spaces(&mut self) -> &mut [Space] {
        &mut self.spaces
    }

    /// The object that the pages of a process go to, where they are tracked.
    pub fn objects(&self) -> HashMap<Pid, u32> {
        self.living().map(|space| (space.tracker.pid, space.object)).collect()
    }

    /// The space tracked in process `pid`.
    pub fn of(&mut self, pid: Pid) -> Option<&mut Space> {
        self.spaces.iter_mut().find(|space| space.tracker.pid == pid && !space.tracker.is_dead())
    }

    fn living(&self) -> impl Iterator<Item = &Space> {
        self.spaces.iter().filter(|space| !space.tracker.is_dead())
    }

    /// The tree is stopped: begins to look what changed in every space since the last round.
    pub fn begin_look(&mut self) -> Result<Vec<(usize, track::Look)>> {
        let mut looks = Vec::new();
        for (at, space) in self.spaces.iter_mut().enumerate().filter(|(_, space)| !space.tracker.is_dead()) {
            match space.tracker.begin_last() {
                Ok(look) => looks.push((at, look)),
                // A process that ended before the stop is no part of the frame.
                Err(e) if e.kind() == Kind::TargetGone || space.has_ended() => space.tracker.give_up(),
                Err(e) => return Err(e),
            }
        }
        Ok(looks)
    }

    /// Takes what the looks have found, and looks at what the spaces share, given who has forked.
    pub fn end_look(&mut self, looks: Vec<(usize, track::Look)>, forked: &Forked) -> Result<()> {
        for (at, look) in looks {
            let space = &mut self.spaces[at];
            match space.tracker.end_last(look) {
                Ok(last) => space.last = last,
                Err(e) if e.kind() == Kind::TargetGone || space.has_ended() => space.tracker.give_up(),
                Err(e) => return Err(e),
            }
        }
        self.shared.last(&self.spaces, forked);
        Ok(())
    }

    /// The frame is committed: what it holds of `objects` need not be copied again. Spaces that are not in it are forgotten, and
    /// begin anew with the next frame.
    pub fn committed(&mut self, objects: &[u32]) {
        self.spaces.retain(|space| objects.contains(&space.object));
        for space in &mut self.spaces {
            space.base = Some(space.object);
            space.uncommitted = Ranges::default();
            let last = std::mem::take(&mut space.last);
            space.tracker.settle(&last);
        }
        self.shared.committed();
    }
}

fn known_or_shared(watch: &Watch, pid: Pid) -> bool {
    watch.spaces.iter().any(|space| space.tracker.pid == pid) || watch.given_up.contains(&pid) || watch.shares_memory(pid)
}

fn inject(frozen: &mut Frozen, at: usize) -> Result<Tracker> {
    let process = &mut frozen.processes[at];
    let site = Site::find(process.pid, &maps::read(&proc::path(process.pid, "maps"))?)?;
    let leader = process.threads.first_mut().ok_or_else(|| Error::refused(format!("pid {} has no thread", process.pid)))?;
    Tracker::inject(&mut Visit::begin(process.pid, leader, site)?)
}
