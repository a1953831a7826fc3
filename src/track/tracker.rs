//! Write-protect tracking of one address space: rounds while it runs, a last look while it is stopped.
//!
//! Only pages that are there get protected. A page that comes, or that is dropped, is therefore *written* until the round
//! that finds it: holes always show as written, in one region however large, and page tables do not grow by our doing.

use std::fs::File;
use std::io;

use super::{is_shared_memory, Range, Ranges};
use crate::error::{Context, Error, Result};
use crate::proc::{self, maps, maps::Vma, Pid};
use crate::sys::pagemap::{self, category, Query, Region};
use crate::sys::uffd::{self, feature, mode, Uffd};
use crate::tracee::visit::Visit;
use crate::tracee::Remote;

/// There in some form: in memory, swapped out, or a marker.
const THERE: u64 = category::PRESENT | category::SWAPPED;
/// What tells data from pages that any mapping would show.
const KIND: u64 = THERE | category::FILE | category::ZERO | category::GUARD;
/// Stretches without holes from this length on are looked at by the kernel's fast path.
const DENSE: u64 = 4 << 20;
/// More changed regions than this in one dense stretch are looked up in one sweep.
const MANY: usize = 512;

/// The watch over one address space.
#[derive(Debug)]
pub struct Tracker {
    /// The process that it was made in; others may share the memory.
    pub pid: Pid,
    pub(super) uffd: Uffd,
    populated: Ranges,
    /// Protected pages without data of their own: of a file, of zeros, guards. What was copied there before no longer counts.
    blank: Ranges,
    /// The guards among them.
    guards: Ranges,
    dead: bool,
}

/// What the last look found, all of it as of an instant at which the process stood still.
#[derive(Debug, Default)]
pub struct Last {
    /// Pages to copy: written since the last round, or never looked at.
    pub dirty: Ranges,
    /// All addresses whose content, or lack of content, is what the rounds said, and those in `dirty`.
    pub live: Ranges,
    /// Guard pages.
    pub guards: Ranges,
    /// Mappings of shared memory, of which nothing else is said here.
    pub shared: Vec<Vma>,
}

impl Tracker {
    /// Makes a watch for the memory of the visited process, which notices nothing.
    pub fn inject(visit: &mut Visit<'_>) -> Result<Tracker> {
        let pid = visit.pid();
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | uffd::USER_MODE_ONLY;
        let explain = |e: io::Error| Error::io(format!("pid {pid}: cannot watch its writes (userfaultfd)"), e);
        let uffd = Uffd::from(visit.userfaultfd(flags).map_err(explain)?);
        uffd.handshake(feature::WP | feature::WP_UNPOPULATED | feature::WP_SHMEM | feature::WP_ASYNC).map_err(explain)?;
        Ok(Tracker { pid, uffd, populated: Ranges::default(), blank: Ranges::default(), guards: Ranges::default(), dead: false })
    }

    /// It tells nothing more: the process exited, runs another program, or could not be looked at.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// What it tells is not to be used any more.
    pub fn give_up(&mut self) {
        self.dead = true;
    }

    /// While the process runs: the pages with data of its own that were written since the last round, all of them the first
    /// time. They are write-protected again, so that a copy made from now on is either current or written once more.
    pub fn round(&mut self) -> Result<Ranges> {
        let (pagemap, vmas) = self.look()?;
        let mut regions = Vec::new();
        for vma in vmas.iter().filter(|vma| is_trackable(vma)) {
            let found = self.round_in(&pagemap, vma);
            // Nobody knows which pages a failed look has protected: the space must be watched anew.
            self.dead |= found.is_err();
            regions.extend(found.context(format_args!("pid {}: cannot follow its writes at {:x}", self.pid, vma.start))?);
        }
        let touched = Ranges::of(regions.iter().map(span).collect());
        let data = select(&regions, is_data);
        self.guards = self.guards.minus(&touched).union(&select(&regions, is_guard));
        self.blank = self.blank.minus(&data).union(&touched.minus(&data));
        self.populated = self.populated.union(&touched);
        Ok(data)
    }

    /// All pages with data of its own, for a frame that is to hold everything; call it after a round.
    pub fn everything(&self) -> Result<Ranges> {
        let (pagemap, vmas) = self.look()?;
        let mut regions = Vec::new();
        for vma in vmas.iter().filter(|vma| is_trackable(vma)) {
            regions.extend(pagemap::scan(&pagemap, vma.start, vma.end, THERE, KIND).context(format_args!("pid {}: cannot list its pages at {:x}", self.pid, vma.start))?);
        }
        Ok(select(&regions, is_data))
    }

    fn look(&self) -> Result<(File, Vec<Vma>)> {
        let path = proc::path(self.pid, "pagemap");
        // Opened anew each time: an open one stays with the memory of the program before an exec.
        Ok((File::open(&path).at("open", &path)?, maps::read(&proc::path(self.pid, "maps"))?))
    }

    fn round_in(&mut self, pagemap: &File, vma: &Vma) -> io::Result<Vec<Region>> {
        // Pages of a file are left alone: a protected one that is dropped keeps a mark that hides the drop.
        let none_of = if has_file(vma) { category::FILE } else { 0 };
        let written = Query { all_of: category::WRITTEN, none_of, any_of: THERE, report: KIND, protect: true, registered: true };
        match pagemap::find(pagemap, vma.start, vma.end, written) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            found => return found,
        }
        if let Err(e) = self.uffd.register(vma.start, vma.len(), mode::WP) {
            // The memory behind the descriptor has ended. Else: changed meanwhile, or not ours to watch; the last look will tell.
            self.dead |= matches!(e.raw_os_error(), Some(libc::ENOMEM | libc::ESRCH)) && self.has_ended(vma.start);
        }
        // The look that failed may have protected pages already, without a word: all that are there count as written.
        pagemap::find(pagemap, vma.start, vma.end, Query { all_of: 0, registered: false, ..written })
    }

    /// Whether the descriptor's address space has no more users. If it has, a page at worst passes for written.
    fn has_ended(&self, at: u64) -> bool {
        self.uffd.write_protect(at, crate::sys::PAGE, false).is_err_and(|e| e.raw_os_error() == Some(libc::ESRCH))
    }

    /// While the process is stopped: what changed since the last round. Protects nothing, so the next round will find it too.
    pub fn last(&self) -> Result<Last> {
        let (pagemap, vmas) = self.look()?;
        let dense: Ranges = Ranges::of(self.populated.as_slice().iter().copied().filter(|range| range.1 - range.0 >= DENSE).collect());
        let (mut regions, mut all) = (Vec::new(), Vec::new());
        for vma in vmas.iter().filter(|vma| is_trackable(vma)) {
            let changed = last_in(&pagemap, vma, &dense).context(format_args!("pid {}: cannot see its writes at {:x}", self.pid, vma.start))?;
            regions.extend(changed);
            all.push((vma.start, vma.end));
        }
        let changed = Ranges::of(regions.iter().map(span).collect());
        let (dirty, new_guards) = (select(&regions, is_data), select(&regions, is_guard));
        let unchanged = Ranges::of(all).minus(&changed);
        let guards = self.guards.intersect(&unchanged).union(&new_guards);
        let shared = vmas.into_iter().filter(is_shared_memory).collect();
        Ok(Last { live: unchanged.minus(&self.blank).union(&dirty), dirty, guards, shared })
    }

    /// Forgets that pages were there which the last look did not find.
    pub fn settle(&mut self, last: &Last) {
        self.populated = self.populated.intersect(&last.live);
    }
}

impl Drop for Tracker {
    /// Lifts the protection bit by bit. The kernel would do it at the close of the descriptor, but all at once: a program of many
    /// gigabytes could not take a page fault meanwhile.
    fn drop(&mut self) {
        const STEP: u64 = 16 << 20;
        let Ok(vmas) = maps::read(&proc::path(self.pid, "maps")) else { return };
        for vma in vmas.iter().filter(|vma| !self.dead && (is_trackable(vma) || is_shared_memory(vma))) {
            for start in (vma.start..vma.end).step_by(STEP as usize) {
                // What cannot be lifted like that (huge pages of a gigabyte) is left to the close.
                let _ = self.uffd.unregister(start, STEP.min(vma.end - start));
            }
        }
    }
}

/// Everything written, dropped or never seen in one mapping, holes included.
fn last_in(pagemap: &File, vma: &Vma, dense: &Ranges) -> io::Result<Vec<Region>> {
    if has_file(vma) {
        return last_in_file(pagemap, vma);
    }
    let whole = Ranges::of(vec![(vma.start, vma.end)]);
    let packed = whole.intersect(dense);
    let looked = (|| {
        let mut found = Vec::new();
        for &(start, end) in whole.minus(&packed).as_slice() {
            found.extend(pagemap::find(pagemap, start, end, written(true))?);
        }
        for &range in packed.as_slice() {
            found.extend(changed_in_dense(pagemap, range)?);
        }
        Ok(found)
    })();
    match looked {
        Err(e) if io::Error::raw_os_error(&e) == Some(libc::EPERM) => everything(pagemap, vma),
        looked => looked,
    }
}

/// In a private mapping of a file a dropped page leaves a mark that looks like a page swapped out and not written. Only a page that
/// is in memory is known to be what it was; one that seems to be swapped out is copied anew.
fn last_in_file(pagemap: &File, vma: &Vma) -> io::Result<Vec<Region>> {
    let own = Query { none_of: category::FILE, any_of: THERE, report: category::WRITTEN | KIND, registered: true, ..Query::default() };
    let own = match pagemap::find(pagemap, vma.start, vma.end, own) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => return everything(pagemap, vma),
        found => found?,
    };
    let kept = |region: &&Region| region.categories & (category::PRESENT | category::WRITTEN) == category::PRESENT;
    let unchanged = Ranges::of(own.iter().filter(kept).map(span).collect());
    let found: Vec<Region> = own.iter().filter(|region| !kept(region)).copied().collect();
    let rest = Ranges::of(vec![(vma.start, vma.end)]).minus(&unchanged).minus(&Ranges::of(found.iter().map(span).collect()));
    Ok(found.into_iter().chain(holes(&rest)).collect())
}

fn holes(ranges: &Ranges) -> impl Iterator<Item = Region> + '_ {
    ranges.as_slice().iter().map(|&(start, end)| Region { start, end, categories: 0 })
}

fn written(registered: bool) -> Query {
    Query { all_of: category::WRITTEN, report: category::WRITTEN | KIND, registered, ..Query::default() }
}

fn changed_in_dense(pagemap: &File, (start, end): Range) -> io::Result<Vec<Region>> {
    // The kernel's fast path wants exactly this; what kind of page each is must then be asked.
    let fast = Query { all_of: category::WRITTEN, report: category::WRITTEN, registered: true, ..Query::default() };
    let changed = pagemap::find(pagemap, start, end, fast)?;
    if changed.len() > MANY {
        return pagemap::find(pagemap, start, end, written(true));
    }
    let mut found = Vec::new();
    for region in changed {
        found.extend(pagemap::find(pagemap, region.start, region.end, written(false))?);
    }
    Ok(found)
}

/// A mapping that was not watched: all of it is new, and what is not there is a hole.
fn everything(pagemap: &File, vma: &Vma) -> io::Result<Vec<Region>> {
    let there = pagemap::scan(pagemap, vma.start, vma.end, THERE, KIND)?;
    let rest = Ranges::of(vec![(vma.start, vma.end)]).minus(&Ranges::of(there.iter().map(span).collect()));
    Ok(there.into_iter().chain(holes(&rest)).collect())
}

/// Private memory; the kernel's own mappings have none.
fn is_trackable(vma: &Vma) -> bool {
    !vma.shared && !matches!(vma.name.as_str(), "[vdso]" | "[vsyscall]") && !vma.name.starts_with("[vvar")
}

fn has_file(vma: &Vma) -> bool {
    vma.inode != 0
}

fn span(region: &Region) -> Range {
    (region.start, region.end)
}

fn select(regions: &[Region], wanted: fn(u64) -> bool) -> Ranges {
    Ranges::of(regions.iter().filter(|region| wanted(region.categories)).map(span).collect())
}

fn is_guard(categories: u64) -> bool {
    categories & category::GUARD != 0
}

/// Bytes of the process alone: neither the file's, nor the page of zeros, nor nothing.
fn is_data(categories: u64) -> bool {
    categories & THERE != 0 && categories & (category::FILE | category::ZERO | category::GUARD) == 0
}
