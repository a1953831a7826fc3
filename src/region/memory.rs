//! Regions: memory that snapshots hold, allocated here or handed over by the program.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

use super::session::Inner;
use crate::error::{Error, Kind, Result};
use crate::proc::{self, maps};
use crate::sys::memory::{Owned, View};
use crate::sys::PAGE;

/// What a session knows of one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Area {
    /// Tells regions apart that had one name after another.
    pub id: u64,
    pub name: String,
    pub address: u64,
    pub len: u64,
    /// Stretches (start, end), sorted and disjoint, that no snapshot holds.
    pub excluded: Vec<(u64, u64)>,
    /// Mapped by us: whole pages, and a page that is not there is zero.
    pub owned: bool,
    /// A way to look into it without asking the kernel.
    pub view: Option<View>,
}

impl Area {
    /// The addresses of the pages that lie wholly inside; empty if start >= end.
    pub fn pages(&self) -> (u64, u64) {
        let end = self.address + self.len;
        match self.owned {
            true => (self.address, end.next_multiple_of(PAGE)),
            false => (self.address.next_multiple_of(PAGE), end / PAGE * PAGE),
        }
    }

    /// What is left of the stretches (start, end) when the excluded ones are cut out.
    pub fn wanted(&self, stretches: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut left = Vec::new();
        for &(start, end) in stretches {
            let (mut at, end) = (start.min(self.len), end.min(self.len));
            for &(from, to) in &self.excluded {
                if to > at && from < end {
                    left.push((at, from.max(at)));
                    at = to;
                }
            }
            left.push((at, end));
        }
        left.retain(|(start, end)| start < end);
        left
    }

    fn exclude(&mut self, start: u64, end: u64) {
        self.excluded.push((start, end));
        self.excluded.sort_unstable();
        self.excluded.dedup_by(|next, range| {
            let touch = next.0 <= range.1;
            if touch {
                range.1 = range.1.max(next.1);
            }
            touch
        });
    }
}

/// The regions of a session, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Table {
    areas: Mutex<(u64, Vec<Area>)>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, (u64, Vec<Area>)> {
        self.areas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn list(&self) -> Vec<Area> {
        self.lock().1.clone()
    }

    /// Adds a region and gives it its id; two cannot have one name or one byte.
    pub fn add(&self, mut area: Area) -> Result<u64> {
        let mut areas = self.lock();
        if areas.1.iter().any(|other| other.name == area.name) {
            return Err(Error::new(Kind::Usage, format!("there is a region named '{}' already; use another name", area.name)));
        }
        let end = area.address + area.len;
        if let Some(other) = areas.1.iter().find(|other| other.address < end && area.address < other.address + other.len) {
            return Err(Error::new(Kind::Usage, format!("region '{}' overlaps region '{}'; register each byte once", area.name, other.name)));
        }
        areas.0 += 1;
        area.id = areas.0;
        let id = area.id;
        areas.1.push(area);
        Ok(id)
    }

    pub fn remove(&self, id: u64) {
        self.lock().1.retain(|area| area.id != id);
    }

    pub fn find(&self, name: &str) -> Option<Area> {
        self.lock().1.iter().find(|area| area.name == name).cloned()
    }

    pub fn exclude(&self, id: u64, start: u64, end: u64) -> Result<()> {
        let mut areas = self.lock();
        let area = areas.1.iter_mut().find(|area| area.id == id).ok_or_else(|| Error::new(Kind::NotFound, "there is no such region any more"))?;
        if start >= end || end > area.len {
            return Err(Error::new(Kind::Usage, format!("bytes {start} to {end} cannot be left out of region '{}', which has {}; name some of its own", area.name, area.len)));
        }
        area.exclude(start, end);
        Ok(())
    }
}

/// Refuses names and sizes that cannot be.
pub(super) fn check(name: &str, len: u64) -> Result<()> {
    if name.is_empty() || name.len() > 255 || name.contains(char::is_control) {
        let shown: String = name.chars().take(40).flat_map(char::escape_default).collect();
        return Err(Error::new(Kind::Usage, format!("'{shown}' cannot name a region; use 1 to 255 bytes of printable text")));
    }
    if len == 0 {
        return Err(Error::new(Kind::Usage, format!("region '{name}' would be empty; give it at least one byte")));
    }
    Ok(())
}

/// Refuses memory that no fork freezes, or that is not there.
pub(super) fn check_foreign(name: &str, address: u64, len: u64) -> Result<()> {
    let end = address.checked_add(len).filter(|_| address != 0);
    let end = end.ok_or_else(|| Error::new(Kind::Usage, format!("region '{name}' at {address:#x} is no memory; register what is mapped")))?;
    let mut at = address;
    for vma in maps::read(&proc::path(std::process::id() as i32, "maps"))?.iter().filter(|vma| vma.start < end && vma.end > address) {
        let usable = vma.start <= at && vma.prot & (libc::PROT_READ | libc::PROT_WRITE) == libc::PROT_READ | libc::PROT_WRITE;
        if !usable {
            break;
        }
        if vma.shared {
            return Err(Error::refused(format!("region '{name}' lies in shared memory at {at:#x}, which other processes may change while it is frozen; register private memory")));
        }
        at = vma.end;
    }
    match at >= end {
        true => Ok(()),
        false => Err(Error::new(Kind::Usage, format!("region '{name}' is not readable and writable at {at:#x}; register what is mapped so"))),
    }
}

/// Plain old data in memory of our own, part of every snapshot until it is dropped. It reads and writes as a slice.
///
/// Its memory is aligned to two megabytes where it is that long, and uses huge pages where the kernel has them.
///
/// ```
/// use stillframe::region::Session;
///
/// # let dir = tempfile::tempdir()?;
/// let session = Session::builder("points").store(dir.path()).open()?;
/// let mut points = session.alloc::<[f32; 3]>("points", 1000)?;
/// points[7] = [1.0, 2.0, 3.0];
/// points.exclude(500..1000)?; // scratch space: no snapshot holds it
/// session.snapshot(&())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Region<T: Pod> {
    memory: Owned,
    home: Arc<Inner>,
    id: u64,
    name: String,
    of: PhantomData<T>,
}

impl<T: Pod> Region<T> {
    pub(super) fn new(memory: Owned, home: Arc<Inner>, id: u64, name: &str) -> Region<T> {
        Region { memory, home, id, name: name.to_owned(), of: PhantomData }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves elements out of every later snapshot: caches, scratch space. They come back as zero.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] if the range is empty or reaches beyond the end.
    pub fn exclude(&self, elements: Range<usize>) -> Result<()> {
        let size = std::mem::size_of::<T>() as u64;
        let bytes = |index: usize| (index as u64).saturating_mul(size);
        self.home.table.exclude(self.id, bytes(elements.start), bytes(elements.end))
    }
}

impl<T: Pod> Deref for Region<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.memory)
    }
}

impl<T: Pod> DerefMut for Region<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.memory)
    }
}

impl<T: Pod> fmt::Debug for Region<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("name", &self.name).field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<T: Pod> Drop for Region<T> {
    fn drop(&mut self) {
        self.home.forget(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> Area {
        Area { id: 1, name: "a".to_owned(), address: 0x10_0010, len: 3 * PAGE, excluded: Vec::new(), owned: false, view: None }
    }

    #[test]
    fn excluded_stretches_are_joined_and_cut_out() {
        let mut area = area();
        for (start, end) in [(100, 200), (50, 60), (150, 300), (60, 70)] {
            area.exclude(start, end);
        }
        assert_eq!(area.excluded, [(50, 70), (100, 300)]);
        assert_eq!(area.wanted(&[(0, u64::MAX)]), [(0, 50), (70, 100), (300, area.len)]);
        assert_eq!(area.wanted(&[(55, 60), (69, 71), (200, 301)]), [(70, 71), (300, 301)]);
    }

    #[test]
    fn only_whole_pages_of_foreign_memory_are_watched() {
        assert_eq!(area().pages(), (0x10_1000, 0x10_3000));
        assert_eq!(Area { owned: true, address: 0x10_0000, len: 5, ..area() }.pages(), (0x10_0000, 0x10_1000));
    }

    #[test]
    fn one_name_and_one_byte_belong_to_one_region() {
        let table = Table::default();
        let id = table.add(area()).unwrap();
        assert_eq!(table.add(area()).unwrap_err().kind(), Kind::Usage);
        assert!(table.add(Area { name: "b".to_owned(), ..area() }).unwrap_err().to_string().contains("overlaps region 'a'"));
        table.remove(id);
        assert_ne!(table.add(area()).unwrap(), id);
    }

    #[test]
    fn memory_that_cannot_be_frozen_is_refused() {
        let kind = |address, len| check_foreign("r", address, len).unwrap_err().kind();
        assert_eq!((kind(0, 10), kind(16, 10), kind(u64::MAX, 10)), (Kind::Usage, Kind::Usage, Kind::Usage));
        let shared = crate::sys::mapping::Shared::new(PAGE, PAGE).unwrap();
        assert_eq!(kind(shared.address(), 1), Kind::Refused);
        let heap = vec![0u8; 100_000];
        check_foreign("r", heap.as_ptr() as u64, 100_000).unwrap();
    }
}
