//! Write-protect tracking of one address space: rounds while it runs, a last look while it is stopped.
//!
//! As a rule only pages that are there get protected. A page that comes, or that is dropped, is therefore *written* until the
//! round that finds it: holes always show as written, in one region however large, and page tables do not grow by our doing.

use std::fs::File;
use std::io;

use super::look::Look;
use super::scan::{self, is_data, is_guard, is_trackable, select, span};
use super::{is_shared_memory, Ranges};
use crate::error::{Context, Error, Result};
use crate::proc::{self, maps, maps::Vma, Pid};
use crate::sys::pagemap::Region;
use crate::sys::uffd::{self, feature, mode, Uffd};
use crate::sys::PAGE;
use crate::tracee::visit::Visit;
use crate::tracee::Remote;

/// Stretches without holes from this length on are looked at by the kernel's fast path.
const DENSE: u64 = 4 << 20;

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

    /// Bytes in which pages were found, the last time each was looked at.
    pub fn populated(&self) -> u64 {
        self.populated.bytes()
    }

    /// What it tells is not to be used any more.
    pub fn give_up(&mut self) {
        self.dead = true;
    }

    /// While the process runs: the pages with data of its own that were written since the last round, all of them the first
    /// time. They are write-protected again, so that a copy made from now on is either current or written once more.
    pub fn round(&mut self) -> Result<Ranges> {
        let (pagemap, vmas) = self.look()?;
        let (dense, mut regions) = (self.dense(), Vec::new());
        for vma in vmas.iter().filter(|vma| is_trackable(vma)) {
            let found = self.round_in(&pagemap, vma, &dense);
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
            regions.extend(scan::kinds(&pagemap, (vma.start, vma.end)).context(format_args!("pid {}: cannot list its pages at {:x}", self.pid, vma.start))?);
        }
        Ok(select(&regions, is_data))
    }

    fn look(&self) -> Result<(File, Vec<Vma>)> {
        let path = proc::path(self.pid, "pagemap");
        // Opened anew each time: an open one stays with the memory of the program before an exec.
        Ok((File::open(&path).at("open", &path)?, maps::read(&proc::path(self.pid, "maps"))?))
    }

    fn round_in(&mut self, pagemap: &File, vma: &Vma, dense: &Ranges) -> io::Result<Vec<Region>> {
        let packed = if scan::has_file(vma) { Ranges::default() } else { Ranges::of(vec![(vma.start, vma.end)]).intersect(dense) };
        match scan::protect(pagemap, vma, &packed) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            found => return found,
        }
        if let Err(e) = self.uffd.register(vma.start, vma.len(), mode::WP) {
            // The memory behind the descriptor has ended. Else: changed meanwhile, or not ours to watch; the last look will tell.
            self.dead |= matches!(e.raw_os_error(), Some(libc::ENOMEM | libc::ESRCH)) && self.has_ended(vma.start);
        }
        // The look that failed may have protected pages already, without a word: all that are there count as written.
        scan::protect_all(pagemap, vma)
    }

    /// Where pages without a gap were found: what the kernel's fast path may look at, for it would report each hole.
    fn dense(&self) -> Ranges {
        Ranges::of(self.populated.as_slice().iter().copied().filter(|range| range.1 - range.0 >= DENSE).collect())
    }

    /// Whether the descriptor's address space has no more users. If it has, a page at worst passes for written.
    fn has_ended(&self, at: u64) -> bool {
        self.uffd.write_protect(at, PAGE, false).is_err_and(|e| e.raw_os_error() == Some(libc::ESRCH))
    }

    /// Begins a look at the stopped process: what changed since the last round. It protects nothing, so the next round will find
    /// that too.
    pub fn begin_last(&self) -> Result<Look> {
        let (pagemap, vmas) = self.look()?;
        Ok(Look::new(self.pid, pagemap, vmas, &self.dense()))
    }

    /// Ends the look, once all who helped are done.
    pub fn end_last(&self, look: Look) -> Result<Last> {
        let (all, regions, shared) = look.end()?;
        let changed = Ranges::of(regions.iter().map(span).collect());
        let (dirty, new_guards) = (select(&regions, is_data), select(&regions, is_guard));
        let unchanged = all.minus(&changed);
        let guards = self.guards.intersect(&unchanged).union(&new_guards);
        Ok(Last { live: unchanged.minus(&self.blank).union(&dirty), dirty, guards, shared })
    }

    /// The guards among pages that passed for data and cannot be read, in the stopped process or in `pid`, its twin.
    pub fn guards_among(&mut self, pid: Pid, ranges: &Ranges) -> Result<Ranges> {
        let path = proc::path(pid, "pagemap");
        let pagemap = File::open(&path).at("open", &path)?;
        let mut regions = Vec::new();
        for &range in ranges.as_slice() {
            regions.extend(scan::kinds(&pagemap, range).context(format_args!("pid {pid}: cannot tell what kind of memory is at {:x}", range.0))?);
        }
        let guards = select(&regions, is_guard);
        self.guards = self.guards.union(&guards);
        self.blank = self.blank.union(&guards);
        Ok(guards)
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
