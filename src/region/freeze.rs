//! The instant: what a snapshot has to store, and who holds it while the program goes on.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::builder::{Builder, Method, Quiesce};
use super::guard::Guard;
use super::memory::Area;
use super::pages::{Copies, InPlace, Pages, Shelf, Stretch};
use super::track::Tracker;
use crate::error::{Context, Error, Kind, Result};
use crate::image::FrameId;
use crate::store::FrameRef;
use crate::sys::quiesce::{self, Unstoppable};
use crate::sys::twin::Twin;

/// What of one region goes into a snapshot.
#[derive(Debug)]
pub(super) struct Part {
    pub area: Area,
    pub object: u32,
    /// Stretches (start, end) of offsets to be stored.
    pub stored: Vec<(u64, u64)>,
    /// The parent's object that holds the rest.
    pub below: Option<u32>,
}

/// The snapshot that another one builds upon.
#[derive(Debug, Clone)]
pub(super) struct Base {
    /// Number of the snapshot in this session.
    pub number: u64,
    pub frame: FrameRef,
    pub id: FrameId,
    /// Its regions' ids and objects.
    pub objects: Vec<(u64, u32)>,
    /// How many snapshots it builds upon itself.
    pub depth: u32,
}

/// What came of an instant.
#[derive(Debug)]
pub(super) struct Frozen {
    pub pages: Pages,
    pub parts: Vec<Part>,
    pub base: Option<Base>,
    pub method: &'static str,
    pub why: String,
    pub copied: u64,
}

/// Freezes, one snapshot after the other.
pub(super) struct Freezer {
    settings: Arc<Builder>,
    method: Method,
    /// At whose end a twin ends: we.
    ourselves: OwnedFd,
    tracker: Option<Tracker>,
    guard: Option<Guard>,
    /// Why writes are not tracked.
    untracked: Option<String>,
    shelf: Arc<Shelf>,
    costs: Costs,
    /// Number of the snapshot since whose instant writes are known.
    since: u64,
    /// Snapshots so far.
    pub count: u64,
}

/// Who holds the pages, and why he; or that a fork should but cannot.
enum Holder {
    Found(Pages, &'static str, String),
    NoFork(Error),
}

impl Freezer {
    pub fn new(settings: &Arc<Builder>, ourselves: OwnedFd) -> Result<Freezer> {
        let asked = settings.method.unwrap_or_default();
        if settings.quiesce == Quiesce::Signal {
            if !matches!(asked, Method::Auto | Method::Fork) {
                return Err(Error::new(Kind::Usage, "threads that a signal stops can be frozen by a fork only; use Method::Fork, or safe points"));
            }
            quiesce::install().context("no real-time signal is free to stop threads with")?;
        }
        // No other method may take the place of a fork then.
        let method = if settings.quiesce == Quiesce::Signal { Method::Fork } else { asked };
        let shelf = Shelf::new(settings.memory_limit);
        let mut freezer = Freezer { settings: settings.clone(), method, ourselves, tracker: None, guard: None, untracked: None, shelf, costs: Costs::default(), since: 0, count: 0 };
        freezer.watch();
        Ok(freezer)
    }

    /// Begins to track writes, where that can be.
    pub fn watch(&mut self) {
        (self.tracker, self.untracked) = match self.settings.increments {
            // One userfaultfd a mapping: the guard knows what was written by itself.
            _ if self.method == Method::WriteProtect => (None, None),
            // Whoever stands still may hold the allocator's lock: then a fork is all that can be done.
            _ if self.settings.quiesce == Quiesce::Signal => (None, Some("threads are stopped by a signal".to_owned())),
            0 => (None, Some("increments are switched off".to_owned())),
            _ => match Tracker::new() {
                Ok(tracker) => (Some(tracker), None),
                Err(e) => (None, Some(e.to_string())),
            },
        };
    }

    /// Lets go of everything that the kernel does for us; the next snapshot holds all. None may be in flight.
    pub fn unwatch(&mut self) {
        (self.tracker, self.guard, self.since) = (None, None, 0);
    }

    pub fn forget(&mut self, area: &Area) {
        if let Some(tracker) = &mut self.tracker {
            tracker.forget(area);
        }
        if let Some(guard) = &self.guard {
            guard.let_go(area);
        }
    }

    /// Freezes `areas` at once. `base` is the newest snapshot that is safe in the store.
    pub fn freeze(&mut self, areas: Vec<Area>, base: Option<Base>) -> Result<Frozen> {
        self.count += 1;
        let base = base.filter(|base| base.number == self.since && base.depth < self.settings.increments);
        // Whatever fails from here on must make the next snapshot a full one.
        self.since = 0;
        if self.method == Method::WriteProtect {
            return self.protect(areas, base, "asked for".to_owned());
        }
        let (mut parts, base) = self.plan(areas, base)?;
        let (pages, method, why) = match self.hold(&parts, base.is_some())? {
            Holder::Found(pages, method, why) => (pages, method, why),
            Holder::NoFork(no_fork) => match Guard::new(self.settings.block_size, self.settings.memory_limit) {
                Ok(guard) => {
                    // From now on: what refuses one fork refuses the next, and a mapping has but one userfaultfd.
                    (self.tracker, self.method, self.guard) = (None, Method::WriteProtect, Some(guard));
                    return self.protect(parts.into_iter().map(|part| part.area).collect(), None, format!("no fork: {no_fork}"));
                }
                Err(no_guard) => self.copy(&parts, format!("no fork: {no_fork}; no write protection: {no_guard}"))?,
            },
        };
        // A region that is dropped need not stay mapped until the snapshot is stored.
        parts.iter_mut().for_each(|part| part.area.view = None);
        self.since = self.count;
        Ok(Frozen { copied: if method == "copy" { stored(&parts) } else { 0 }, pages, parts, base, method, why })
    }

    /// The write-protect method. While a snapshot of the kind is in flight, a fork holds the next one.
    fn protect(&mut self, areas: Vec<Area>, base: Option<Base>, why: String) -> Result<Frozen> {
        if self.guard.as_ref().is_some_and(|guard| guard.guarded.is_busy()) {
            let (mut parts, _) = self.plan(areas, None)?;
            parts.iter_mut().for_each(|part| part.area.view = None);
            return Ok(Frozen { pages: Pages::Twin(self.split()?), parts, base: None, method: "fork", why: "the write-protected snapshot before is in flight".to_owned(), copied: 0 });
        }
        let guard = match self.guard.take() {
            Some(guard) => guard,
            None => Guard::new(self.settings.block_size, self.settings.memory_limit)?,
        };
        let armed = guard.guarded.arm(&areas.iter().collect::<Vec<_>>(), base.is_some());
        let guarded = self.guard.insert(guard).guarded.clone();
        let mut parts = parts(areas, armed?.into_iter().map(Some).collect(), base.as_ref());
        let base = base.filter(|_| parts.iter().any(|part| part.below.is_some()));
        let ends: Vec<Stretch<'_>> = parts.iter().flat_map(ends).collect();
        let copied = ends.iter().map(|(_, len, _)| len).sum();
        // Made first: if the ends cannot be read, the blocks are let go with it.
        let mut held = InPlace { guarded, ends: Copies::take(&[], &self.shelf)? };
        held.ends = Copies::take(&ends, &self.shelf)?;
        drop(ends);
        parts.iter_mut().for_each(|part| part.area.view = None);
        self.since = self.count;
        Ok(Frozen { pages: Pages::Guarded(held), parts, base, method: "write-protect", why, copied })
    }

    /// What is to be stored. The watch over writes starts anew here.
    fn plan(&mut self, areas: Vec<Area>, base: Option<Base>) -> Result<(Vec<Part>, Option<Base>)> {
        let mut all = Vec::new();
        for area in &areas {
            all.push(match self.tracker.as_mut().map(|tracker| tracker.written(area)).transpose() {
                Ok(written) => written.flatten(),
                Err(e) => {
                    (self.tracker, self.untracked) = (None, Some(e.to_string()));
                    None
                }
            });
        }
        let parts = parts(areas, all, base.as_ref());
        let upon = parts.iter().any(|part| part.below.is_some());
        Ok((parts, base.filter(|_| upon)))
    }

    fn hold(&mut self, parts: &[Part], increment: bool) -> Result<Holder> {
        let wanted = stored(parts);
        if self.method == Method::Copy {
            let (pages, method, why) = self.copy(parts, "asked for".to_owned())?;
            return Ok(Holder::Found(pages, method, why));
        }
        let cheaper = increment && self.method == Method::Auto && wanted <= self.shelf.room();
        if let Some(why) = self.costs.favour_copy(wanted).filter(|_| cheaper) {
            let (pages, method, why) = self.copy(parts, why)?;
            return Ok(Holder::Found(pages, method, why));
        }
        let auto = self.method == Method::Auto;
        let why = match &self.untracked {
            _ if !auto => "asked for".to_owned(),
            Some(why) => format!("writes are not tracked: {why}"),
            None => format!("{} MiB to store", wanted >> 20),
        };
        let begun = Instant::now();
        match self.split() {
            Ok(twin) => {
                self.costs.forked(begun.elapsed());
                Ok(Holder::Found(Pages::Twin(twin), "fork", why))
            }
            Err(e) if auto => Ok(Holder::NoFork(e)),
            Err(e) => Err(e),
        }
    }

    fn copy(&mut self, parts: &[Part], why: String) -> Result<(Pages, &'static str, String)> {
        let (wanted, room) = (stored(parts), self.shelf.room());
        if wanted > room {
            return Err(Error::refused(format!("copies of {} MiB exceed the memory limit, of which {} MiB are left; raise it, or use fork ({why})", wanted.div_ceil(1 << 20), room >> 20)));
        }
        let stretches: Vec<Stretch<'_>> = parts.iter().flat_map(|part| part.stored.iter().map(|(start, end)| (part.area.address + start, end - start, part.area.view.as_ref()))).collect();
        let begun = Instant::now();
        let copies = Copies::take(&stretches, &self.shelf)?;
        self.costs.copied(wanted, begun.elapsed());
        Ok((Pages::Copies(copies), "copy", why))
    }

    fn split(&self) -> Result<Twin> {
        let fork = || Twin::split(self.ourselves.as_fd());
        let twin = match self.settings.quiesce {
            Quiesce::SafePoint => fork(),
            Quiesce::Signal => quiesce::while_stopped(fork).map_err(unstoppable)?,
        };
        let twin = twin.context("cannot fork")?;
        // Whether it can be read is better known now than when the program has changed everything.
        let mut probe = [0u8; 1];
        match twin.read(PROBE.as_ptr() as u64, &mut probe) {
            Ok(1) if probe == PROBE => Ok(twin),
            Err(e) => Err(Error::io("a twin of this program cannot be read", e)),
            Ok(_) => Err(Error::refused("a twin of this program does not hold its memory, or was killed at once")),
        }
    }
}

/// What freezing has cost so far, by which the next method is picked.
#[derive(Debug)]
struct Costs {
    /// Of a fork, in nanoseconds; none so far.
    fork: Option<f64>,
    /// Of a copied byte, in nanoseconds.
    byte: f64,
}

/// At 5 GB/s: what is hoped for before it is known, so that it is tried.
const BYTE: f64 = 0.2;

impl Default for Costs {
    fn default() -> Costs {
        Costs { fork: None, byte: BYTE }
    }
}

impl Costs {
    /// Why `bytes` are better copied, if they are.
    fn favour_copy(&self, bytes: u64) -> Option<String> {
        let copy = bytes as f64 * self.byte;
        let millis = |nanos: f64| format!("{:.1} ms", nanos / 1e6);
        match self.fork {
            None => Some(format!("{} MiB changed", bytes >> 20)),
            Some(fork) if copy <= fork => Some(format!("{} MiB changed, to copy which takes {}, and a fork {}", bytes >> 20, millis(copy), millis(fork))),
            Some(_) => None,
        }
    }

    fn forked(&mut self, took: Duration) {
        let took = took.as_nanos() as f64;
        self.fork = Some(self.fork.map_or(took, |fork| (fork + took) / 2.0));
        // One bad copy must not rule out all others.
        self.byte = 0.9 * self.byte + 0.1 * BYTE;
    }

    fn copied(&mut self, bytes: u64, took: Duration) {
        // What is over in no time says little about a byte.
        if bytes >= 1 << 20 {
            self.byte = (self.byte + took.as_nanos() as f64 / bytes as f64) / 2.0;
        }
    }
}

fn unstoppable(why: Unstoppable) -> Error {
    match why {
        Unstoppable::Io(e) => Error::io("cannot stop the other threads", e),
        Unstoppable::Thread(tid) => Error::new(Kind::Busy, format!("thread {tid} does not stop: it blocks real-time signals, or sleeps where none reaches it; use safe points")),
    }
}

static PROBE: [u8; 1] = [0x5f];

/// Addresses (start, end) that changed; none: that is not known.
type Changes = Option<Vec<(u64, u64)>>;

/// What of each area is stored: with a list of changed addresses and an object below it, those; else all.
fn parts(areas: Vec<Area>, changes: Vec<Changes>, base: Option<&Base>) -> Vec<Part> {
    let object = |id| base.and_then(|base| base.objects.iter().find(|(area, _)| *area == id)).map(|(_, object)| *object);
    let part = |(index, (area, changes)): (usize, (Area, Changes))| {
        let (stored, below) = match (changes, object(area.id)) {
            (Some(written), Some(object)) => (area.wanted(&changed(&area, &written)), Some(object)),
            _ => (area.wanted(&[(0, area.len)]), None),
        };
        Part { area, object: index as u32 + 1, stored, below }
    };
    areas.into_iter().zip(changes).enumerate().map(part).collect()
}

/// The ends of foreign memory in pages that are not protected.
fn ends(part: &Part) -> Vec<Stretch<'_>> {
    let (area, (first, last)) = (&part.area, part.area.pages());
    let end = area.address + area.len;
    match first < last {
        true => [(area.address, first.min(end)), (last.min(end), end)].into_iter().filter(|(from, to)| from < to).map(|(from, to)| (from, to - from, None)).collect(),
        false => vec![(area.address, area.len, None)],
    }
}

fn stored(parts: &[Part]) -> u64 {
    parts.iter().flat_map(|part| &part.stored).map(|(start, end)| end - start).sum()
}

/// Offsets of what may have changed: written pages, and the ends of foreign memory in pages that are watched by nobody.
fn changed(area: &Area, written: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let (first, last) = area.pages();
    let offset = |address: u64| address.clamp(area.address, area.address + area.len) - area.address;
    if first >= last {
        return vec![(0, area.len)];
    }
    let inner = written.iter().map(|&(start, end)| (offset(start), offset(end)));
    [(0, offset(first))].into_iter().chain(inner).chain([(offset(last), area.len)]).filter(|(start, end)| start < end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::PAGE;

    #[test]
    fn the_cheaper_of_copy_and_fork_is_picked_by_what_they_took() {
        let mut costs = Costs::default();
        assert!(costs.favour_copy(1 << 40).is_some());
        costs.forked(Duration::from_millis(10));
        assert!(costs.favour_copy(49_000_000).is_some() && costs.favour_copy(51_000_000).is_none());
        // Half as fast as hoped for: 0.3 ns a byte from now on.
        costs.copied(100_000_000, Duration::from_millis(40));
        assert!(costs.favour_copy(33_000_000).is_some() && costs.favour_copy(34_000_000).is_none());
        (0..50).for_each(|_| costs.forked(Duration::from_millis(10)));
        assert!(costs.favour_copy(49_000_000).is_some());
    }

    #[test]
    fn the_ends_of_foreign_memory_always_count_as_changed() {
        let area = Area { id: 1, name: "a".to_owned(), address: 0x10_0010, len: 3 * PAGE, excluded: Vec::new(), owned: false, view: None };
        assert_eq!(changed(&area, &[(0x10_2000, 0x10_3000)]), [(0, 0xff0), (0x1ff0, 0x2ff0), (0x2ff0, 0x3000)]);
        let owned = Area { address: 0x10_0000, len: PAGE + 5, owned: true, ..area.clone() };
        assert_eq!(changed(&owned, &[(0x10_1000, 0x10_2000)]), [(PAGE, PAGE + 5)]);
        let tiny = Area { len: 20, ..area };
        assert_eq!(changed(&tiny, &[]), [(0, 20)]);
    }
}
