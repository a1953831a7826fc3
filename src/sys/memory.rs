//! Memory of our own process that is to be frozen: mapped by us, or handed over by the caller.

use std::arch::asm;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::PAGE;

/// The size of a huge page, to which large mappings are aligned.
pub const HUGE: u64 = 2 << 20;

/// Private anonymous memory of ours, zero at first; unmapped when it and all views of it are dropped.
#[derive(Debug)]
pub struct Owned {
    start: *mut u8,
    len: usize,
    whole: Arc<Mapping>,
}

/// Whole pages: start and length.
#[derive(Debug)]
struct Mapping(u64, u64);

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.0, self.1);
    }
}

/// A way to look into memory that somebody else may be writing to, and that stays mapped for as long.
#[derive(Debug, Clone)]
pub struct View(Arc<Mapping>);

impl View {
    /// Copies `buf.len()` bytes from `address` on; false, and nothing is copied, if they are not all in there.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> bool {
        let Mapping(start, len) = *self.0;
        let inside = address.checked_sub(start).and_then(|skip| skip.checked_add(buf.len() as u64)).is_some_and(|end| end <= len);
        if inside {
            // SAFETY: the source is mapped and readable, the target is borrowed exclusively and as long. An instruction of the
            // processor and not of the language copies: bytes that are written meanwhile may be torn, and no more than that.
            unsafe { asm!("rep movsb", inout("rcx") buf.len() => _, inout("rdi") buf.as_mut_ptr() => _, inout("rsi") address => _, options(nostack, preserves_flags)) };
        }
        inside
    }
}

impl PartialEq for View {
    fn eq(&self, other: &View) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for View {}

// SAFETY: the mapping belongs to this value alone, and a value can be handed to another thread like any other buffer.
unsafe impl Send for Owned {}
// SAFETY: a shared reference allows reading only.
unsafe impl Sync for Owned {}

impl Owned {
    /// `len` bytes, aligned to a huge page and advised to use them where it is that long.
    pub fn new(len: u64) -> io::Result<Owned> {
        let pages = whole_pages(len)?;
        let align = if pages >= HUGE { HUGE } else { PAGE };
        let room = pages.checked_add(align - PAGE).ok_or_else(too_long)?;
        let at = map(0, room, 0)?;
        let start = at.next_multiple_of(align);
        unmap(at, start - at);
        unmap(start + pages, room - pages - (start - at));
        if align == HUGE {
            advise_huge(start, pages);
        }
        Ok(Owned { start: start as *mut u8, len: len as usize, whole: Arc::new(Mapping(start, pages)) })
    }

    /// `len` bytes at exactly `address`, the start of a page; EEXIST if something is mapped there.
    pub fn at(address: u64, len: u64) -> io::Result<Owned> {
        let pages = whole_pages(len)?;
        let start = map(address, pages, libc::MAP_FIXED_NOREPLACE)?;
        if pages >= HUGE {
            advise_huge(start, pages);
        }
        Ok(Owned { start: start as *mut u8, len: len as usize, whole: Arc::new(Mapping(start, pages)) })
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// A way to look into it, whoever writes.
    pub fn view(&self) -> View {
        View(self.whole.clone())
    }
}

impl Deref for Owned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is readable, `len` bytes long, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Owned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Memory of somebody else in this process, which whoever made the value has promised to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreign {
    address: u64,
    len: u64,
}

impl Foreign {
    /// The `len` bytes from `address` on.
    ///
    /// # Safety
    ///
    /// The memory must be mapped, readable and writable for as long as it is registered anywhere. Nobody may write to it
    /// while a snapshot is being split off or content is being put back, and its bytes may be of any value.
    ///
    /// ```
    /// use stillframe::region::{Foreign, Session};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let session = Session::builder("buffer").store(dir.path()).open()?;
    /// let mut buffer = vec![7u8; 100_000];
    /// // SAFETY: the buffer outlives its registration, and no other thread writes to it.
    /// session.register("buffer", unsafe { Foreign::new(buffer.as_mut_ptr(), buffer.len()) })?;
    /// session.load("buffer")?; // if there is a snapshot to go on from
    /// session.snapshot(&())?;
    /// session.unregister("buffer")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn new(address: *mut u8, len: usize) -> Foreign {
        Foreign { address: address as u64, len: len as u64 }
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

fn too_long() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEM)
}

fn whole_pages(len: u64) -> io::Result<u64> {
    len.max(1).checked_next_multiple_of(PAGE).filter(|&pages| pages <= isize::MAX as u64).ok_or_else(too_long)
}

fn map(address: u64, len: u64, flags: i32) -> io::Result<u64> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh anonymous mapping; a fixed address never replaces what is there.
    let at = unsafe { libc::mmap(address as *mut libc::c_void, len as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    match at {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        at => Ok(at as u64),
    }
}

fn unmap(start: u64, len: u64) {
    if len > 0 {
        // SAFETY: callers name parts of mappings of theirs, to which no reference is left.
        unsafe { libc::munmap(start as *mut libc::c_void, len as usize) };
    }
}

/// Huge pages make a fork some twenty times cheaper; a kernel without them is no reason to fail.
fn advise_huge(start: u64, len: u64) {
    // SAFETY: advice about a mapping of ours, which changes none of its content.
    unsafe { libc::madvise(start as *mut libc::c_void, len as usize, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_memory_is_aligned_to_huge_pages_and_small_memory_is_not() {
        let large = Owned::new(5 << 20).unwrap();
        assert_eq!((large.address() % HUGE, large.len()), (0, 5 << 20));
        let mut small = Owned::new(100).unwrap();
        small[99] = 7;
        assert_eq!((small.address() % PAGE, small.len(), small[98]), (0, 100, 0));
    }

    #[test]
    fn a_taken_address_is_refused() {
        let first = Owned::new(PAGE).unwrap();
        assert_eq!(Owned::at(first.address(), PAGE).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        let address = first.address();
        drop(first);
        assert_eq!(Owned::at(address, PAGE).unwrap().address(), address);
    }

    #[test]
    fn a_view_sees_what_is_written_and_nothing_else() {
        let mut memory = Owned::new(2 * PAGE).unwrap();
        let (view, address) = (memory.view(), memory.address());
        memory[PAGE as usize..PAGE as usize + 3].copy_from_slice(&[1, 2, 3]);
        let mut seen = [9; 3];
        assert!(view.read(address + PAGE, &mut seen) && seen == [1, 2, 3]);
        assert!(view.read(address + 2 * PAGE - 3, &mut seen) && seen == [0; 3]);
        assert!(!view.read(address + 2 * PAGE - 2, &mut seen) && !view.read(address - 1, &mut seen) && !view.read(u64::MAX, &mut seen));
        drop(memory);
        assert_eq!(Owned::at(address, PAGE).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        drop(view);
        Owned::at(address, PAGE).unwrap();
    }

    #[test]
    fn absurd_lengths_are_refused() {
        assert!(Owned::new(u64::MAX).is_err());
        assert!(Owned::new(1 << 62).is_err());
    }
}
