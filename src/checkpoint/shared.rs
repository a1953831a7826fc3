//! Memory that processes of the tree share, from one frame to the next: copied by rounds as private memory is, or whole in the
//! pause where somebody may have written to it unseen.
//!
//! Writes are seen through the page tables of those who map the memory ([`SharedMemory`]). Whoever maps it and is not watched,
//! or no longer maps it, may have written anything: then all of it counts as written. The reasons are listed in [`Object::doubt`].

use super::outside;
use super::watch::Space;
use crate::error::Result;
use crate::image::FrameWriter;
use crate::proc::{self, maps, maps::Vma, Pid};
use crate::resource::contents::Contents;
use crate::resource::files::{FileEntry, FileKind};
use crate::sys::kcmp;
use crate::sys::shm::Use;
use crate::sys::PAGE;
use crate::track::forks::{Forked, Forks};
use crate::track::{self, LastShared, Ranges, SharedMemory, Tracker};
use crate::tracee::seize;

/// Less than this is copied whole in the pause: a copy of it takes no longer than a look.
const SMALL: u64 = 64 * PAGE;

/// In one frame all of a memory is copied so often at most before the pause; then it is left to the pause.
const WHOLE_ROUNDS: u32 = 2;

/// Which look it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The first of a frame, which holds everything if it is `full`.
    First {
        /// No increment.
        full: bool,
    },
    /// A further one, after a large round.
    Further,
    /// A further one, after a small round.
    Small,
}

/// All shared memory of a tree that can be watched.
#[derive(Debug, Default)]
pub struct Shared {
    objects: Vec<Object>,
    /// Watched as long as there is any.
    forks: Option<Forks>,
    /// Mappings of what cannot be watched, by device, inode and name.
    given_up: Vec<Vma>,
}

/// Memory that is shared.
#[derive(Debug)]
struct Object {
    memory: SharedMemory,
    /// Any mapping of it.
    vma: Vma,
    /// The System V segment that it is.
    segment: Option<i32>,
    /// How that was used as of the last look.
    used: Option<Use>,
    /// Who mapped it at the last look, and how.
    mapped: Vec<(Pid, Vma)>,
    /// Nobody outside the tree can write to it, as long as nobody forks.
    alone: bool,
    /// Whatever the next look tells, all of it counts as written.
    unsure: bool,
    /// The last look could tell what is written.
    tracked: bool,
    /// Looks of this frame after which everything is to be copied.
    wholes: u32,
    /// Its object in the frame that is being taken.
    number: u32,
    /// Its object in the last committed frame, if it is in there.
    base: Option<u32>,
    /// As for private memory: see [`Space`].
    uncommitted: Ranges,
    owed: Ranges,
    recent: Ranges,
    hot: Ranges,
    /// The last look, where it could tell.
    last: Option<LastShared>,
    /// The frame holds it, in pages copied by us.
    stored: bool,
}

/// Who maps what at a look.
struct Mapped<'a> {
    by: Vec<(&'a Space, Vma)>,
    /// By processes of the tree that are not tracked.
    strange: Vec<Vma>,
    tree: Vec<Pid>,
}

impl Shared {
    /// Looks for memory that tracked processes share and that is not known yet, and forgets what nobody maps any more.
    pub fn discover(&mut self, spaces: &[Space]) -> Result<()> {
        let mut found: Vec<(Pid, Vma)> = Vec::new();
        for space in spaces {
            found.extend(mappings(space.tracker.pid).into_iter().map(|vma| (space.tracker.pid, vma)));
        }
        self.objects.retain(|object| found.iter().any(|(_, vma)| outside::same(vma, &object.vma)));
        self.given_up.retain(|old| found.iter().any(|(_, vma)| outside::same(vma, old)));
        for (pid, vma) in found {
            if self.given_up.iter().chain(self.objects.iter().map(|object| &object.vma)).any(|old| outside::same(old, &vma)) {
                continue;
            }
            if self.forks.is_none() {
                self.forks = Some(Forks::watch()?);
            }
            // What cannot be watched is copied whole; so is what ends just now, if it is there at all.
            let memory = if track::is_sound_for_shared_memory() { SharedMemory::open(pid, &vma).unwrap_or(None) } else { None };
            match memory.filter(|memory| memory.bytes() >= SMALL) {
                Some(memory) => self.objects.push(Object::new(memory, vma)),
                None => self.given_up.push(vma),
            }
        }
        if self.objects.is_empty() {
            self.forks = None;
        }
        Ok(())
    }

    /// Gives each its object in the frame that begins.
    pub fn number(&mut self, contents: &mut Contents) {
        for object in &mut self.objects {
            object.number = contents.object();
            (object.owed, object.recent, object.hot) = Default::default();
            (object.last, object.stored, object.wholes) = (None, false, 0);
        }
    }

    /// While the tree runs: finds what was written; returns how many bytes are to be copied now.
    pub fn look(&mut self, root: Pid, spaces: &[Space], look: Look) -> Result<u64> {
        if self.objects.is_empty() {
            return Ok(0);
        }
        // Whoever forks from here on is news for the next look; who was born before is found below, or is gone.
        let forked = self.forked()?;
        let mapped = Mapped::now(root, spaces)?;
        Ok(self.objects.iter_mut().map(|object| object.look(&mapped, &forked, look)).sum())
    }

    /// Who has forked since the last look. Nothing runs before the tree does.
    pub fn forked(&mut self) -> Result<Forked> {
        self.forks.as_mut().map_or(Ok(Forked::By(Default::default())), Forks::since)
    }

    /// The tree is stopped: what changed since the last look.
    pub fn last(&mut self, spaces: &[Space], forked: &Forked) {
        for object in &mut self.objects {
            object.look_last(spaces, forked);
        }
    }

    /// Bytes found written and not copied yet.
    pub fn owed(&self) -> u64 {
        self.objects.iter().map(|object| object.owed.bytes()).sum()
    }

    /// Copies what is owed and not hot, up to `most` bytes of each memory: `with` gets its object, itself and the ranges.
    pub fn copy(&mut self, most: u64, mut with: impl FnMut(u32, &SharedMemory, &Ranges) -> Result<()>) -> Result<()> {
        for object in &mut self.objects {
            let todo = object.owed.minus(&object.hot);
            if !todo.is_empty() && todo.bytes() <= most {
                with(object.number, &object.memory, &todo)?;
                object.owed = object.owed.minus(&todo);
            }
        }
        Ok(())
    }

    /// What the frame still lacks of a file of the stopped tree, where that is shared memory of which the last look could tell:
    /// its object, itself and the ranges.
    pub fn rest(&self, file: &FileEntry) -> Option<(u32, &SharedMemory, Ranges)> {
        let object = self.objects.iter().find(|object| object.memory.is(file.device, file.inode) && object.is_kind(&file.kind))?;
        let last = object.last.as_ref()?;
        Some((object.number, &object.memory, last.dirty.union(&object.owed).intersect(&last.live)))
    }

    /// The frame has, or will have, all of an object.
    pub fn stored(&mut self, number: u32) {
        self.objects.iter_mut().filter(|object| object.number == number).for_each(|object| object.stored = true);
    }

    /// Says what of the copied pages counts, and what is to be found in the parent.
    pub fn lay_out(&self, writer: &mut FrameWriter, increment: bool) -> Result<()> {
        for object in &self.objects {
            let live = object.last.as_ref().filter(|_| object.stored).map_or(&[][..], |last| last.live.as_slice());
            writer.clip(object.number, live)?;
            if let Some(base) = object.base.filter(|_| increment) {
                live.iter().try_for_each(|&(start, end)| writer.parent(object.number, start, end - start, base))?;
            }
        }
        Ok(())
    }

    /// The frame is committed: what it holds need not be copied again.
    pub fn committed(&mut self) {
        for object in &mut self.objects {
            object.base = object.stored.then_some(object.number);
            object.uncommitted = Ranges::default();
        }
    }
}

impl Object {
    fn new(memory: SharedMemory, vma: Vma) -> Object {
        // The inode of a segment has its number.
        let segment = vma.name.starts_with("/SYSV").then_some(vma.inode as i32);
        Object {
            memory,
            vma,
            segment,
            used: None,
            mapped: Vec::new(),
            alone: false,
            unsure: true,
            tracked: false,
            wholes: 0,
            number: 0,
            base: None,
            uncommitted: Ranges::default(),
            owed: Ranges::default(),
            recent: Ranges::default(),
            hot: Ranges::default(),
            last: None,
            stored: false,
        }
    }

    fn is_kind(&self, kind: &FileKind) -> bool {
        match kind {
            FileKind::SystemV(_) => self.segment.is_some(),
            FileKind::SharedAnonymous => self.segment.is_none(),
            _ => false,
        }
    }

    /// Why anything may have been written since the last look, other than by mappings that were watched all the time: the
    /// memory was not tracked then, a process that mapped it has forked (the child may be gone again), a mapping is gone that
    /// was there (by munmap, mremap, exec or exit), a segment was attached or detached.
    fn doubt(&mut self, now: &[(Pid, &Vma)], forked: &Forked) -> bool {
        let forked = forked.concerns(self.mapped.iter().map(|(pid, _)| *pid).chain(now.iter().map(|(pid, _)| *pid)));
        let gone = self.mapped.iter().any(|(pid, old)| !is_still_there(*pid, old, now));
        let used = self.segment.and_then(|id| Use::now(id).ok());
        let attached = self.segment.is_some() && !self.used.as_ref().zip(used.as_ref()).is_some_and(|(old, new)| old.is_unchanged(new));
        // A process that has left the tree may have taken a mapping along.
        self.alone &= !(forked || gone);
        self.used = used;
        self.mapped = now.iter().map(|(pid, vma)| (*pid, (*vma).clone())).collect();
        self.unsure || !self.tracked || forked || gone || attached
    }

    /// Whether somebody can write whose writes nobody sees: a process of the tree that is not tracked, or one outside.
    fn is_exposed(&mut self, mapped: &Mapped<'_>, now: usize) -> Result<bool> {
        if mapped.strange.iter().any(|vma| outside::same(vma, &self.vma)) {
            return Ok(true);
        }
        if self.segment.is_some() {
            // Every mapping is counted, and nothing but a mapping writes.
            return Ok(self.used.as_ref().is_none_or(|used| used.attached != now as u64));
        }
        if !self.alone {
            self.alone = !outside::is_mapped(&mapped.tree, &self.vma, self.memory.born())?;
        }
        Ok(!self.alone)
    }

    fn look(&mut self, mapped: &Mapped<'_>, forked: &Forked, look: Look) -> u64 {
        let by: Vec<(&Tracker, &Vma)> = mapped.by.iter().filter(|(_, vma)| outside::same(vma, &self.vma)).map(|(space, vma)| (&space.tracker, vma)).collect();
        let now: Vec<(Pid, &Vma)> = by.iter().map(|(tracker, vma)| (tracker.pid, *vma)).collect();
        let doubt = self.doubt(&now, forked);
        let exposed = self.is_exposed(mapped, now.len());
        let written = if exposed.unwrap_or(true) { Err(()) } else { self.memory.round(&by).map_err(drop) };
        let written = written.map(|written| written.filter(|_| !doubt));
        self.wholes += u32::from(matches!(written, Ok(None)));
        let Some(written) = written.ok().filter(|_| self.wholes <= WHOLE_ROUNDS) else {
            // The pause will copy all of it. What is in the frame already does not count.
            (self.tracked, self.base) = (false, None);
            (self.owed, self.recent, self.hot) = Default::default();
            return 0;
        };
        (self.tracked, self.unsure) = (true, false);
        self.take(written, look)
    }

    /// Owes what was written, or everything; returns how many bytes are to be copied now.
    fn take(&mut self, written: Option<Ranges>, look: Look) -> u64 {
        let data = self.memory.data();
        let everything = written.is_none() || matches!(look, Look::First { full } if full || self.base.is_none());
        let written = if everything { data.clone() } else { written.unwrap_or_default() };
        self.uncommitted = self.uncommitted.union(&written).intersect(data);
        self.owed = match look {
            Look::First { .. } => self.uncommitted.clone(),
            _ => self.owed.union(&written).intersect(data),
        };
        if look == Look::Small && !everything {
            self.hot = self.hot.union(&written.intersect(&self.recent));
            self.recent = written;
        } else if everything {
            (self.recent, self.hot) = Default::default();
        }
        self.owed.minus(&self.hot).bytes()
    }

    fn look_last(&mut self, spaces: &[Space], forked: &Forked) {
        self.last = None;
        if !self.tracked {
            return;
        }
        let living = spaces.iter().filter(|space| !space.tracker.is_dead());
        let shown = living.flat_map(|space| space.last.shared.iter().map(move |vma| (&space.tracker, vma)));
        let by: Vec<(&Tracker, &Vma)> = shown.filter(|(_, vma)| outside::same(vma, &self.vma)).collect();
        let now: Vec<(Pid, &Vma)> = by.iter().map(|(tracker, vma)| (tracker.pid, *vma)).collect();
        let doubt = self.doubt(&now, forked);
        let counted = self.segment.is_none() || self.used.as_ref().is_some_and(|used| used.attached == now.len() as u64);
        let found = match self.memory.last(&by) {
            Ok(Some(last)) if !doubt => Some(last),
            // Who wrote may still be there, and not be watched.
            Ok(_) => self.memory.everything().ok().map(|live| LastShared { dirty: live.clone(), live }).inspect(|_| self.unsure = true),
            Err(_) => None,
        };
        self.last = found.filter(|_| counted);
        // A page punched out and copied now is not told of again, should this frame fail.
        self.uncommitted = self.last.as_ref().map_or_else(Ranges::default, |last| self.uncommitted.union(&last.dirty));
        self.tracked &= self.last.is_some();
    }
}

impl<'a> Mapped<'a> {
    fn now(root: Pid, spaces: &'a [Space]) -> Result<Mapped<'a>> {
        let tree = seize::tree(root)?;
        let (mut by, mut strange) = (Vec::new(), Vec::new());
        let tracked = |pid: Pid| spaces.iter().find(|space| space.tracker.pid == pid && !space.tracker.is_dead());
        for &pid in &tree {
            match tracked(pid) {
                Some(space) => by.extend(mappings(pid).into_iter().map(|vma| (space, vma))),
                None if spaces.iter().any(|space| kcmp::shares(pid, space.tracker.pid, kcmp::Object::Memory).unwrap_or(false)) => {}
                None => strange.extend(mappings(pid)),
            }
        }
        Ok(Mapped { by, strange, tree })
    }
}

/// The mappings of shared memory of a process; none of one that is gone.
fn mappings(pid: Pid) -> Vec<Vma> {
    maps::read(&proc::path(pid, "maps")).unwrap_or_default().into_iter().filter(track::is_shared_memory).collect()
}

/// Whether every address of a mapping still shows what it did. The kernel splits and joins mappings as their rights change.
fn is_still_there(pid: Pid, old: &Vma, now: &[(Pid, &Vma)]) -> bool {
    let same = now.iter().filter(|(by, new)| *by == pid && new.start.wrapping_sub(new.offset) == old.start.wrapping_sub(old.offset));
    let shown = Ranges::of(same.map(|(_, new)| (new.start, new.end)).collect());
    Ranges::of(vec![(old.start, old.end)]).minus(&shown).is_empty()
}
