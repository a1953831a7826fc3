//! Which pages the program wrote since the last snapshot, as the kernel remembers it (asynchronous write protection).

use std::fs::File;
use std::path::Path;

use super::memory::Area;
use crate::error::{Context, Result};
use crate::sys::pagemap::{self, category, Query};
use crate::sys::uffd::{feature, mode, Uffd, USER_MODE_ONLY};

/// A watch over the regions' pages. When it goes, the kernel forgets; the program runs on either way.
#[derive(Debug)]
pub(super) struct Tracker {
    uffd: Uffd,
    pagemap: File,
    /// Regions under watch, by id.
    watched: Vec<u64>,
}

impl Tracker {
    /// Needs no privilege: faults are never reported, only counted.
    pub fn new() -> Result<Tracker> {
        let uffd = Uffd::own(USER_MODE_ONLY).context("cannot make a userfaultfd")?;
        let features = feature::WP | feature::WP_UNPOPULATED | feature::WP_ASYNC;
        uffd.handshake(features).context("this kernel cannot track writes (needs Linux 6.7)")?;
        let path = Path::new("/proc/self/pagemap");
        let pagemap = File::open(path).at("open", path)?;
        Ok(Tracker { uffd, pagemap, watched: Vec::new() })
    }

    /// Addresses (start, end) of the pages written since the last call, watched anew from this instant on. None if that is
    /// not known: at the first call for a region, or when the program has mapped something else there.
    pub fn written(&mut self, area: &Area) -> Result<Option<Vec<(u64, u64)>>> {
        let (start, end) = area.pages();
        if start >= end {
            return Ok(Some(Vec::new()));
        }
        if self.watched.contains(&area.id) {
            if let Ok(written) = self.take(start, end) {
                return Ok(Some(written));
            }
            self.watched.retain(|&id| id != area.id);
        }
        self.uffd.register(start, end - start, mode::WP).context(format!("cannot watch region '{}'", area.name))?;
        self.take(start, end).context(format!("cannot watch region '{}'", area.name))?;
        self.watched.push(area.id);
        Ok(None)
    }

    fn take(&self, start: u64, end: u64) -> std::io::Result<Vec<(u64, u64)>> {
        // Asked for this alone, the kernel takes its fast path.
        let query = Query { all_of: category::WRITTEN, report: category::WRITTEN, protect: true, registered: true, ..Query::default() };
        let mut written: Vec<(u64, u64)> = Vec::new();
        for run in pagemap::find(&self.pagemap, start, end, query)? {
            match written.last_mut() {
                Some(last) if last.1 == run.start => last.1 = run.end,
                _ => written.push((run.start, run.end)),
            }
        }
        Ok(written)
    }

    /// Ends the watch over a region that goes away.
    pub fn forget(&mut self, area: &Area) {
        let (start, end) = area.pages();
        if self.watched.contains(&area.id) {
            self.watched.retain(|&id| id != area.id);
            // The mapping may be gone already, and the watch with it.
            let _ = self.uffd.unregister(start, end - start);
        }
    }
}
