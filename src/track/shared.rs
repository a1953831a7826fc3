//! Which pages of shared memory were written, whoever wrote them.
//!
//! A write lifts the protection in the page tables of the process that writes, and in no others. So every process that maps the
//! memory is watched, and what any of their page tables shows is written. Here the pages that are not in a page table are
//! protected too, by a mark: shared memory may be taken out of a page table at any time, and the kernel then leaves the mark
//! behind unless the page was written. What has no mark counts as written.
//!
//! One thing no page table shows: a page that is punched out of the memory (MADV_REMOVE) and read again keeps its mark, and is
//! zero. A [`Mirror`] shows it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::SystemTime;

use super::{Range, Ranges, Tracker};
use crate::error::{Context, Error, Result};
use crate::proc::{self, maps::Vma, Pid};
use crate::sys::mirror::Mirror;
use crate::sys::pagemap::{self, category, Query};
use crate::sys::uffd::mode;
use crate::sys::PAGE;

const TMPFS: i64 = 0x0102_1994;
/// Below this many bytes data is looked for page by page.
const SHORT: u64 = 16 << 20;
/// With more stretches of data than this, holes between them are protected along.
const MANY: usize = 64;

/// Memory that processes share by mappings alone. Its length never changes.
#[derive(Debug)]
pub struct SharedMemory {
    file: File,
    len: u64,
    mirror: Mirror,
    /// Where it had data at the last round; the rest are holes, which read as zero.
    data: Ranges,
}

/// What the last look found; ranges are offsets in the memory.
#[derive(Debug, Default)]
pub struct LastShared {
    /// Pages with data that were written since the last round.
    pub dirty: Ranges,
    /// Pages with data.
    pub live: Ranges,
}

/// Whether `vma` is shared memory to which nothing but a mapping leads: anonymous, or a System V segment. A memfd has descriptors,
/// and a file has a path or had one.
pub fn is_shared_memory(vma: &Vma) -> bool {
    vma.shared && (vma.name == "/dev/zero (deleted)" || vma.name.starts_with("/SYSV"))
}

impl SharedMemory {
    /// The memory that process `pid` maps as `vma`. Nothing where its content cannot be had in whole pages.
    pub fn open(pid: Pid, vma: &Vma) -> Result<Option<SharedMemory>> {
        let path = proc::path(pid, &format!("map_files/{:x}-{:x}", vma.start, vma.end));
        let Ok(file) = File::open(&path) else { return Ok(None) };
        let len = file.metadata().at("examine", &path)?.len();
        let kind = nix::sys::statfs::fstatfs(&file).map_err(|e| Error::io(format!("cannot examine {}", path.display()), e))?.filesystem_type();
        if kind.0 as i64 != TMPFS || len == 0 || len % PAGE != 0 {
            return Ok(None);
        }
        let mirror = Mirror::new(&file, len).context(format_args!("cannot map {}", path.display()))?;
        Ok(Some(SharedMemory { file, len, mirror, data: Ranges::default() }))
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Whether a file with these numbers is this memory.
    pub fn is(&self, device: u64, inode: u64) -> bool {
        self.file.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == (device, inode))
    }

    /// When it was made, where the kernel tells.
    pub fn born(&self) -> Option<SystemTime> {
        self.file.metadata().and_then(|meta| meta.created()).ok()
    }

    /// Where it had data at the last round.
    pub fn data(&self) -> &Ranges {
        &self.data
    }

    /// While the processes run: which pages with data were written since the last round, by way of these mappings or out of
    /// existence. They are protected again. Nothing where a mapping was not watched until now, so that anything may be written.
    pub fn round(&mut self, mappings: &[(&Tracker, &Vma)]) -> Result<Option<Ranges>> {
        self.data = self.data_in(&Ranges::of(vec![(0, self.len)]))?;
        let mut written = Vec::new();
        let mut known = true;
        for (tracker, vma) in mappings {
            match tracker.written(vma, Some(&self.data)).context(format_args!("pid {}: cannot follow its writes at {:x}", tracker.pid, vma.start))? {
                Some(found) => written.extend(found),
                None => known = false,
            }
        }
        // Holes are protected along with the data around them. What was filled before that is data, and must not seem to be old.
        let late = match known {
            true => self.data_in(&Ranges::of(written.clone()).minus(&self.data))?,
            false => self.everything()?,
        };
        self.data = self.data.union(&late);
        let gone = self.absent()?;
        self.mirror.take_in(&gone).context("cannot map shared memory")?;
        written.extend(gone);
        Ok(known.then(|| Ranges::of(written).intersect(&self.data)))
    }

    /// While they stand still: what changed since the last round. Protects nothing, so the next round will find it too. Nothing
    /// where a mapping was not watched.
    pub fn last(&self, mappings: &[(&Tracker, &Vma)]) -> Result<Option<LastShared>> {
        let mut changed = self.absent()?;
        for (tracker, vma) in mappings {
            match tracker.written(vma, None).context(format_args!("pid {}: cannot see its writes at {:x}", tracker.pid, vma.start))? {
                Some(found) => changed.extend(found),
                None => return Ok(None),
            }
        }
        let changed = Ranges::of(changed);
        let dirty = self.data_in(&changed)?;
        Ok(Some(LastShared { live: self.data.minus(&changed).union(&dirty), dirty }))
    }

    /// All its data, as of now.
    pub fn everything(&self) -> Result<Ranges> {
        self.data_in(&Ranges::of(vec![(0, self.len)]))
    }

    /// Copies `ranges` one behind the other into all of `buf`. What has become a hole is zero.
    pub fn read(&self, ranges: &[Range], buf: &mut [u8]) -> Result<()> {
        if self.mirror.read(ranges, buf) {
            return Ok(());
        }
        let mut rest = buf;
        for range in ranges {
            let (part, behind) = rest.split_at_mut((range.1 - range.0) as usize);
            self.read_at(range.0, part)?;
            rest = behind;
        }
        Ok(())
    }

    /// Fills `buf` from `offset`. What has become a hole is zero.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64).context("cannot read shared memory")? {
                0 => {
                    buf[done..].fill(0);
                    break;
                }
                read => done += read,
            }
        }
        Ok(())
    }

    fn absent(&self) -> Result<Vec<Range>> {
        self.mirror.absent(self.data.as_slice()).context("cannot see which pages of shared memory are gone")
    }

    /// The parts of `ranges` that are no holes.
    fn data_in(&self, ranges: &Ranges) -> Result<Ranges> {
        use nix::unistd::{lseek, Whence::{SeekData, SeekHole}};
        let mut found = Ranges::default();
        for &(start, end) in ranges.as_slice() {
            let (mut at, end) = (start, end.min(self.len));
            while at < end {
                let from = match lseek(&self.file, at as i64, SeekData) {
                    Err(nix::Error::ENXIO) => break,
                    from => from.map_err(|e| Error::io("cannot find the data of shared memory", e))? as u64,
                };
                if from >= end {
                    break;
                }
                // The kernel looks for the next hole however far that is: in a short stretch it is better asked page by page.
                at = match end - from {
                    ..SHORT => from + PAGE,
                    _ => lseek(&self.file, from as i64, SeekHole).map_err(|e| Error::io("cannot find the data of shared memory", e))? as u64,
                };
                found.push((from, at.min(end)));
            }
        }
        Ok(found)
    }
}

impl Tracker {
    /// The offsets of the memory behind `vma` that were written through it; protected again where they lie `within` offsets, if
    /// any are given. Nothing where the mapping was not watched; then it is from here on.
    fn written(&self, vma: &Vma, within: Option<&Ranges>) -> io::Result<Option<Vec<Range>>> {
        match self.scan(vma, within) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
            written => return written.map(Some),
        }
        match self.uffd.register(vma.start, vma.len(), mode::WP) {
            // Of a file opened for reading: nothing can ever be written through it.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => return Ok(Some(Vec::new())),
            begun => begun?,
        }
        if within.is_some() {
            self.scan(vma, within)?;
        }
        Ok(None)
    }

    fn scan(&self, vma: &Vma, within: Option<&Ranges>) -> io::Result<Vec<Range>> {
        let pagemap = File::open(proc::path(self.pid, "pagemap"))?;
        // The kernel's fast path wants exactly this.
        let query = Query { all_of: category::WRITTEN, report: category::WRITTEN, registered: true, protect: within.is_some(), ..Query::default() };
        let mut written = Vec::new();
        for (start, end) in looked_at(vma, within) {
            let found = pagemap::find(&pagemap, start, end, query)?;
            written.extend(found.iter().map(|region| (region.start - vma.start + vma.offset, region.end - vma.start + vma.offset)));
        }
        Ok(written)
    }
}

/// The addresses of `vma` that show the offsets `within`, or all.
fn looked_at(vma: &Vma, within: Option<&Ranges>) -> Vec<Range> {
    let shown = (vma.offset, vma.offset + vma.len());
    let Some(within) = within else { return vec![(vma.start, vma.end)] };
    let parts = within.intersect(&Ranges::of(vec![shown]));
    let parts = match parts.as_slice() {
        [first, .., last] if parts.as_slice().len() > MANY => vec![(first.0, last.1)],
        parts => parts.to_vec(),
    };
    parts.into_iter().map(|(start, end)| (start - vma.offset + vma.start, end - vma.offset + vma.start)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_become_addresses() {
        let vma = Vma { start: 0x10000, end: 0x20000, prot: 3, shared: true, offset: 0x4000, device: "00:01".into(), inode: 7, name: "/dev/zero (deleted)".into() };
        assert!(is_shared_memory(&vma) && !is_shared_memory(&Vma { shared: false, ..vma.clone() }));
        assert_eq!(looked_at(&vma, None), [(0x10000, 0x20000)]);
        let within = Ranges::of(vec![(0, 0x5000), (0x8000, 0x9000), (0x13000, 0x40000)]);
        assert_eq!(looked_at(&vma, Some(&within)), [(0x10000, 0x11000), (0x14000, 0x15000), (0x1f000, 0x20000)]);
        let many = Ranges::of((0..100).map(|n| (0x4000 + n * 0x200, 0x4100 + n * 0x200)).collect());
        assert_eq!(looked_at(&vma, Some(&many)).len(), 1);
    }
}
