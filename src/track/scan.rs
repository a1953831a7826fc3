//! What page tables tell of one stretch of a mapping.
//!
//! Where pages lie without a gap (*packed* stretches) the kernel's fast path looks: it tells written pages, but not what kind of
//! page each is. Little that it finds passes for data, because whoever copies it learns better; of much the kind is asked.

use std::fs::File;
use std::io;

use super::{Range, Ranges};
use crate::proc::maps::Vma;
use crate::sys::pagemap::{self, category, Query, Region};
use crate::sys::PAGE;

/// There in some form: in memory, swapped out, or a marker.
const THERE: u64 = category::PRESENT | category::SWAPPED;
/// What tells data from pages that any mapping would show.
const KIND: u64 = THERE | category::FILE | category::ZERO | category::GUARD;
/// A region of this length is much.
const MUCH: u64 = 64 * PAGE;
/// Bytes that are looked at and then protected while their page tables are at hand.
const STEP: u64 = 32 << 20;
/// The kernel's fast path wants exactly this.
const FAST: Query = Query { all_of: category::WRITTEN, none_of: 0, any_of: 0, report: category::WRITTEN, protect: false, registered: true };

/// Protects pages with data that were written, and tells them. Holes are left alone, but for few in packed stretches, which look
/// like pages swapped out from then on and read as zeros.
pub fn protect(pagemap: &File, vma: &Vma, packed: &Ranges) -> io::Result<Vec<Region>> {
    let whole = Ranges::of(vec![(vma.start, vma.end)]);
    let mut found = Vec::new();
    for &(start, end) in whole.minus(packed).as_slice() {
        found.extend(pagemap::find(pagemap, start, end, to_protect(vma))?);
    }
    for &(start, end) in packed.as_slice() {
        for at in (start..end).step_by(STEP as usize) {
            protect_packed(pagemap, vma, (at, end.min(at + STEP)), &mut found)?;
        }
    }
    Ok(found)
}

fn protect_packed(pagemap: &File, vma: &Vma, range: Range, found: &mut Vec<Region>) -> io::Result<()> {
    let seen = pagemap::find(pagemap, range.0, range.1, FAST)?;
    if seen.is_empty() {
        return Ok(());
    }
    let much = Ranges::of(seen.iter().filter(|region| is_much(region)).map(span).collect());
    for &(start, end) in Ranges::of(vec![range]).minus(&much).as_slice() {
        found.extend(pagemap::find(pagemap, start, end, Query { protect: true, ..FAST })?.into_iter().map(presume));
    }
    for &(start, end) in much.as_slice() {
        found.extend(pagemap::find(pagemap, start, end, to_protect(vma))?);
    }
    Ok(())
}

/// Protects all pages that are there, whether the mapping is watched or not, and tells them.
pub fn protect_all(pagemap: &File, vma: &Vma) -> io::Result<Vec<Region>> {
    pagemap::find(pagemap, vma.start, vma.end, Query { all_of: 0, registered: false, ..to_protect(vma) })
}

fn to_protect(vma: &Vma) -> Query {
    // Pages of a file are left alone: a protected one that is dropped keeps a mark that hides the drop.
    let none_of = if has_file(vma) { category::FILE } else { 0 };
    Query { all_of: category::WRITTEN, none_of, any_of: THERE, report: KIND, protect: true, registered: true }
}

/// Everything written, dropped or never seen in a part of a mapping, holes included.
pub fn changed(pagemap: &File, range: Range, of_file: bool, packed: bool) -> io::Result<Vec<Region>> {
    let looked = match (of_file, packed) {
        (true, _) => changed_in_file(pagemap, range),
        (false, true) => changed_in_packed(pagemap, range),
        (false, false) => pagemap::find(pagemap, range.0, range.1, written()),
    };
    match looked {
        // Not watched: all of it is new, and what is not there is a hole.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => kinds(pagemap, range),
        looked => looked,
    }
}

fn changed_in_packed(pagemap: &File, (start, end): Range) -> io::Result<Vec<Region>> {
    let mut found = Vec::new();
    for region in pagemap::find(pagemap, start, end, FAST)? {
        if is_much(&region) {
            found.extend(pagemap::find(pagemap, region.start, region.end, written())?);
        } else {
            found.push(presume(region));
        }
    }
    Ok(found)
}

/// In a private mapping of a file a dropped page leaves a mark that looks like a page swapped out and not written. Only a page that
/// is in memory is known to be what it was; one that seems to be swapped out is copied anew.
fn changed_in_file(pagemap: &File, range: Range) -> io::Result<Vec<Region>> {
    let own = Query { none_of: category::FILE, any_of: THERE, report: category::WRITTEN | KIND, registered: true, ..Query::default() };
    let own = pagemap::find(pagemap, range.0, range.1, own)?;
    let kept = |region: &&Region| region.categories & (category::PRESENT | category::WRITTEN) == category::PRESENT;
    let unchanged = Ranges::of(own.iter().filter(kept).map(span).collect());
    let found: Vec<Region> = own.iter().filter(|region| !kept(region)).copied().collect();
    let rest = Ranges::of(vec![range]).minus(&unchanged).minus(&Ranges::of(found.iter().map(span).collect()));
    Ok(found.into_iter().chain(holes(&rest)).collect())
}

/// What kind of page each is, holes included.
pub fn kinds(pagemap: &File, range: Range) -> io::Result<Vec<Region>> {
    let there = pagemap::scan(pagemap, range.0, range.1, THERE, KIND)?;
    let rest = Ranges::of(vec![range]).minus(&Ranges::of(there.iter().map(span).collect()));
    Ok(there.into_iter().chain(holes(&rest)).collect())
}

fn written() -> Query {
    Query { report: category::WRITTEN | KIND, ..FAST }
}

fn is_much(region: &Region) -> bool {
    region.end - region.start >= MUCH
}

fn presume(region: Region) -> Region {
    Region { categories: category::WRITTEN | category::PRESENT, ..region }
}

fn holes(ranges: &Ranges) -> impl Iterator<Item = Region> + '_ {
    ranges.as_slice().iter().map(|&(start, end)| Region { start, end, categories: 0 })
}

/// Private memory; the kernel's own mappings have none.
pub fn is_trackable(vma: &Vma) -> bool {
    !vma.shared && !matches!(vma.name.as_str(), "[vdso]" | "[vsyscall]") && !vma.name.starts_with("[vvar")
}

/// Whether a file lies behind it.
pub fn has_file(vma: &Vma) -> bool {
    vma.inode != 0
}

/// The region's addresses.
pub fn span(region: &Region) -> Range {
    (region.start, region.end)
}

/// Addresses of the regions of a kind.
pub fn select(regions: &[Region], wanted: fn(u64) -> bool) -> Ranges {
    Ranges::of(regions.iter().filter(|region| wanted(region.categories)).map(span).collect())
}

/// A guard page.
pub fn is_guard(categories: u64) -> bool {
    categories & category::GUARD != 0
}

/// Bytes of the process alone: neither the file's, nor the page of zeros, nor nothing.
pub fn is_data(categories: u64) -> bool {
    categories & THERE != 0 && categories & (category::FILE | category::ZERO | category::GUARD) == 0
}
