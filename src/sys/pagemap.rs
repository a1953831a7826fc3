//! The PAGEMAP_SCAN ioctl on /proc/PID/pagemap (Linux 6.7).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::check;

/// Page categories of PAGEMAP_SCAN.
pub mod category {
    /// Written since it was last write-protected.
    pub const WRITTEN: u64 = 1 << 1;
    /// A page of a file or of shared memory, as opposed to a private copy.
    pub const FILE: u64 = 1 << 2;
    /// Present in memory.
    pub const PRESENT: u64 = 1 << 3;
    /// Swapped out.
    pub const SWAPPED: u64 = 1 << 4;
    /// The kernel's page of zeros.
    pub const ZERO: u64 = 1 << 5;
    /// A guard page (MADV_GUARD_INSTALL).
    pub const GUARD: u64 = 1 << 8;
    /// Part of a transparent or explicit huge page.
    pub const HUGE: u64 = 1 << 6;
}

/// A run of pages of equal categories.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// Which of the asked categories hold.
    pub categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const _: () = assert!(std::mem::size_of::<ScanArg>() == 0x60);

/// What a scan looks for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query {
    /// Categories that must all hold.
    pub all_of: u64,
    /// Categories that must not hold.
    pub none_of: u64,
    /// Categories of which one must hold; none: no such condition.
    pub any_of: u64,
    /// Categories to report.
    pub report: u64,
    /// Write-protect what matches again.
    pub protect: bool,
    /// Fail with EPERM where a mapping is not registered for asynchronous write protection.
    pub registered: bool,
}

const WP_MATCHING: u64 = 1;
const CHECK_WPASYNC: u64 = 2;
/// Bytes looked at under one hold of the target's map lock, or more where nothing is mapped.
const STEP: u64 = 32 << 20;

/// Regions of [`start`, `end`) in which any category of `any_of` holds, with those of `report` that hold.
pub fn scan(pagemap: &File, start: u64, end: u64, any_of: u64, report: u64) -> io::Result<Vec<Region>> {
    find(pagemap, start, end, Query { any_of, report, ..Query::default() })
}

/// Regions of [`start`, `end`) that match `query`, in steps, so that the target can change its mappings in between.
pub fn find(pagemap: &File, start: u64, end: u64, query: Query) -> io::Result<Vec<Region>> {
    let mut found = Vec::new();
    let mut chunk = [Region::default(); 512];
    let mut at = start;
    while at < end {
        let to = at.saturating_add(STEP).min(end);
        let (n, walked) = walk(pagemap, at, to, query, &mut chunk)?;
        found.extend_from_slice(&chunk[..n]);
        at = if walked > at { walked } else { to };
    }
    Ok(found)
}

/// One call: how many regions it found, and how far it came.
fn walk(pagemap: &File, start: u64, end: u64, query: Query, out: &mut [Region]) -> io::Result<(usize, u64)> {
    let mut arg = ScanArg {
        size: std::mem::size_of::<ScanArg>() as u64,
        flags: if query.protect { WP_MATCHING } else { 0 } | if query.registered { CHECK_WPASYNC } else { 0 },
        start,
        end,
        // Without a vector the kernel would protect holes too, whatever is asked.
        vec: out.as_mut_ptr() as u64,
        vec_len: out.len() as u64,
        category_inverted: query.none_of,
        category_mask: query.all_of | query.none_of,
        category_anyof_mask: query.any_of,
        return_mask: query.report,
        ..ScanArg::default()
    };
    // SAFETY: `arg` and the vector it points to are live and of the sizes it states.
    let n = check(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &mut arg) }.into())?;
    Ok((n as usize, arg.walk_end))
}
