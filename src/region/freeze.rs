//! The instant: what a snapshot has to store, and who holds it while the program goes on.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::builder::{Builder, Method, Quiesce};
use super::guard::{Guard, Guarded};
use super::memory::Area;
use super::track::Tracker;
use crate::error::{Context, Error, Kind, Result};
use crate::image::FrameId;
use crate::store::FrameRef;
use crate::sys::memory::Owned;
use crate::sys::process_vm;
use crate::sys::quiesce::{self, Unstoppable};
use crate::sys::twin::Twin;
use crate::sys::PAGE;

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

/// Who holds the pages until they are stored.
#[derive(Debug)]
pub(super) enum Pages {
    Twin(Twin),
    Copies(Copies),
    /// Where they are, and the ends of foreign memory beside them.
    Guarded(InPlace),
}

/// Write-protected blocks of a snapshot; when it goes, all that was not read is given up.
#[derive(Debug)]
pub(super) struct InPlace {
    pub guarded: Arc<Guarded>,
    pub ends: Copies,
}

impl Drop for InPlace {
    fn drop(&mut self) {
        if self.guarded.is_busy() {
            self.guarded.abandon();
        }
    }
}

/// Pages copied in the pause: addresses, lengths and places in `memory`, in ascending order of addresses.
#[derive(Debug)]
pub(super) struct Copies {
    memory: Owned,
    entries: Vec<(u64, u64, u64)>,
}

impl Pages {
    /// Fills `buf` from `address` on, as of the instant.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        match self {
            Pages::Twin(twin) => match twin.read(address, buf) {
                Ok(len) if len == buf.len() => Ok(()),
                Ok(len) => Err(Error::refused(format!("the page at {:#x} was left out by the fork (MADV_DONTFORK); do not register it", address + len as u64))),
                Err(e) => Err(Error::io("cannot read the pages that the twin holds", e)),
            },
            Pages::Copies(copies) => copies.read(address, buf),
            Pages::Guarded(held) => held.ends.read(address, buf),
        }
    }

    /// What lies in [`start`, `end`) is stored: whole pages of it need not be held.
    pub fn release(&self, start: u64, end: u64) {
        let (first, last) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
        match self {
            Pages::Twin(twin) if first < last => twin.release(first, last - first),
            _ => {}
        }
    }
}

impl Copies {
    /// Copies stretches of memory (address, length).
    fn take(stretches: &[(u64, u64)]) -> Result<Copies> {
        let total = stretches.iter().map(|(_, len)| len).sum();
        let mut memory = Owned::new(total).context(format!("no memory for copies of {total} bytes"))?;
        let mut entries = Vec::new();
        let mut at = 0;
        for &(address, len) in stretches {
            own(address, &mut memory[at as usize..(at + len) as usize])?;
            entries.push((address, len, at));
            at += len;
        }
        entries.sort_unstable();
        Ok(Copies { memory, entries })
    }

    /// The stretches, by address.
    pub fn each(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.entries.iter().map(|&(address, len, at)| (address, &self.memory[at as usize..(at + len) as usize]))
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        let next = self.entries.partition_point(|entry| entry.0 <= address);
        let found = next.checked_sub(1).map(|entry| self.entries[entry]).filter(|(start, len, _)| address + buf.len() as u64 <= start + len);
        let (start, _, at) = found.ok_or_else(|| Error::new(Kind::Usage, format!("nothing was copied from {address:#x}")))?;
        let at = (at + address - start) as usize;
        buf.copy_from_slice(&self.memory[at..at + buf.len()]);
        Ok(())
    }
}

/// Reads our own memory by a system call, which other threads may be writing to.
pub(super) fn own(address: u64, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let at = address + done as u64;
        let len = (buf.len() - done).min(1 << 30);
        let read = process_vm::read(std::process::id() as i32, &[(at, len)], &mut buf[done..done + len]);
        match read.context(format!("cannot read the region's memory at {at:#x}"))? {
            0 => return Err(Error::refused(format!("the region's memory at {at:#x} is gone; remove a region before its memory"))),
            len => done += len,
        }
    }
    Ok(())
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
#[derive(Debug)]
pub(super) struct Freezer {
    method: Method,
    quiesce: Quiesce,
    memory_limit: u64,
    block_size: u64,
    increments: u32,
    /// At whose end a twin ends: we.
    ourselves: OwnedFd,
    tracker: Option<Tracker>,
    guard: Option<Guard>,
    /// Why writes are not tracked.
    untracked: Option<String>,
    /// Number of the snapshot since whose instant writes are known.
    since: u64,
    /// Snapshots so far.
    pub count: u64,
}

impl Freezer {
    pub fn new(settings: &Builder, ourselves: OwnedFd) -> Result<Freezer> {
        let method = settings.method.unwrap_or_default();
        let (tracker, untracked) = match settings.increments {
            // One userfaultfd a mapping: the guard knows what was written by itself.
            _ if method == Method::WriteProtect => (None, None),
            // Whoever stands still may hold the allocator's lock: then a fork is all that can be done.
            _ if settings.quiesce == Quiesce::Signal => (None, Some("threads are stopped by a signal".to_owned())),
            0 => (None, Some("increments are switched off".to_owned())),
            _ => match Tracker::new() {
                Ok(tracker) => (Some(tracker), None),
                Err(e) => (None, Some(e.to_string())),
            },
        };
        if settings.quiesce == Quiesce::Signal {
            if !matches!(method, Method::Auto | Method::Fork) {
                return Err(Error::new(Kind::Usage, "threads that a signal stops can be frozen by a fork only; use Method::Fork, or safe points"));
            }
            quiesce::install().context("no real-time signal is free to stop threads with")?;
        }
        // No other method may take the place of a fork then.
        let method = if settings.quiesce == Quiesce::Signal { Method::Fork } else { method };
        Ok(Freezer { method, quiesce: settings.quiesce, memory_limit: settings.memory_limit, block_size: settings.block_size, increments: settings.increments, ourselves, tracker, guard: None, untracked, since: 0, count: 0 })
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
        let base = base.filter(|base| base.number == self.since && base.depth < self.increments);
        // Whatever fails from here on must make the next snapshot a full one.
        self.since = 0;
        if self.method == Method::WriteProtect {
            return self.protect(areas, base, "asked for".to_owned());
        }
        let (parts, base) = self.plan(areas, base)?;
        let frozen = match self.hold(&parts, base.is_some())? {
            Ok((pages, method, why)) => Frozen { copied: if method == "copy" { stored(&parts) } else { 0 }, pages, parts, base, method, why },
            Err(no_fork) => {
                // From now on: what refuses one fork refuses the next, and a mapping has but one userfaultfd.
                (self.tracker, self.method) = (None, Method::WriteProtect);
                return self.protect(parts.into_iter().map(|part| part.area).collect(), None, format!("no fork: {no_fork}"));
            }
        };
        self.since = self.count;
        Ok(frozen)
    }

    /// The write-protect method. While a snapshot of the kind is in flight, a fork holds the next one.
    fn protect(&mut self, areas: Vec<Area>, base: Option<Base>, why: String) -> Result<Frozen> {
        if self.guard.as_ref().is_some_and(|guard| guard.guarded.is_busy()) {
            let (parts, _) = self.plan(areas, None)?;
            return Ok(Frozen { pages: Pages::Twin(self.split()?), parts, base: None, method: "fork", why: "the write-protected snapshot before is in flight".to_owned(), copied: 0 });
        }
        let guard = match self.guard.take() {
            Some(guard) => guard,
            None => Guard::new(self.block_size, self.memory_limit)?,
        };
        let armed = guard.guarded.arm(&areas.iter().collect::<Vec<_>>(), base.is_some());
        let guarded = self.guard.insert(guard).guarded.clone();
        let parts = parts(areas, armed?.into_iter().map(Some).collect(), base.as_ref());
        let base = base.filter(|_| parts.iter().any(|part| part.below.is_some()));
        let ends: Vec<(u64, u64)> = parts.iter().flat_map(ends).collect();
        let copied = ends.iter().map(|(_, len)| len).sum();
        // Made first: if the ends cannot be read, the blocks are let go with it.
        let mut held = InPlace { guarded, ends: Copies::take(&[])? };
        held.ends = Copies::take(&ends)?;
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

    /// Holds what is to be stored; the inner error says why there is no fork, where write protection may still do.
    fn hold(&self, parts: &[Part], increment: bool) -> Result<Result<(Pages, &'static str, String)>> {
        let wanted = stored(parts);
        let mib = wanted >> 20;
        let copy = |why: String| {
            let stretches: Vec<(u64, u64)> = parts.iter().flat_map(|part| part.stored.iter().map(|(start, end)| (part.area.address + start, end - start))).collect();
            Ok(Ok((Pages::Copies(Copies::take(&stretches)?), "copy", why)))
        };
        match self.method {
            Method::Copy if wanted > self.memory_limit => Err(Error::refused(format!("copies of {mib} MiB exceed the memory limit of {} MiB; raise it or use fork", self.memory_limit >> 20))),
            Method::Copy => copy("asked for".to_owned()),
            Method::Auto if increment && wanted <= self.memory_limit.min(whole(parts) / 8) => copy(format!("{mib} MiB changed, which is less work to copy than page tables are to a fork")),
            Method::Auto => match self.split() {
                Ok(twin) => Ok(Ok((Pages::Twin(twin), "fork", self.untracked.clone().map_or_else(|| format!("{mib} MiB to store"), |why| format!("writes are not tracked: {why}"))))),
                Err(e) => Ok(Err(e)),
            },
            _ => Ok(Ok((Pages::Twin(self.split()?), "fork", "asked for".to_owned()))),
        }
    }

    fn split(&self) -> Result<Twin> {
        let fork = || Twin::split(self.ourselves.as_fd());
        let twin = match self.quiesce {
            Quiesce::SafePoint => fork(),
            Quiesce::Signal => quiesce::while_stopped(fork).map_err(unstoppable)?,
        };
        let twin = twin.context("cannot fork")?;
        // Whether it may be read is better known now than when the program has changed everything.
        let mut probe = [0u8; 1];
        match twin.read(PROBE.as_ptr() as u64, &mut probe) {
            Ok(1) if probe == PROBE => Ok(twin),
            Err(e) => Err(Error::io("a twin of this program cannot be read (prctl PR_SET_DUMPABLE 1, or kernel.yama.ptrace_scope below 2)", e)),
            Ok(_) => Err(Error::refused("a twin of this program does not hold its memory")),
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

/// The ends of foreign memory (address, length) in pages that are not protected.
fn ends(part: &Part) -> Vec<(u64, u64)> {
    let (area, (first, last)) = (&part.area, part.area.pages());
    let end = area.address + area.len;
    match first < last {
        true => [(area.address, first.min(end)), (last.min(end), end)].into_iter().filter(|(from, to)| from < to).map(|(from, to)| (from, to - from)).collect(),
        false => vec![(area.address, area.len)],
    }
}

fn stored(parts: &[Part]) -> u64 {
    parts.iter().flat_map(|part| &part.stored).map(|(start, end)| end - start).sum()
}

fn whole(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.area.len).sum()
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

    #[test]
    fn the_ends_of_foreign_memory_always_count_as_changed() {
        let area = Area { id: 1, name: "a".to_owned(), address: 0x10_0010, len: 3 * PAGE, excluded: Vec::new(), owned: false };
        assert_eq!(changed(&area, &[(0x10_2000, 0x10_3000)]), [(0, 0xff0), (0x1ff0, 0x2ff0), (0x2ff0, 0x3000)]);
        let owned = Area { address: 0x10_0000, len: PAGE + 5, owned: true, ..area.clone() };
        assert_eq!(changed(&owned, &[(0x10_1000, 0x10_2000)]), [(PAGE, PAGE + 5)]);
        let tiny = Area { len: 20, ..area };
        assert_eq!(changed(&tiny, &[]), [(0, 20)]);
    }
}
