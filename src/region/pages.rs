//! Who holds the pages of a snapshot until they are stored.

use std::sync::{Arc, Mutex, PoisonError};

use super::guard::Guarded;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::memory::{Owned, View};
use crate::sys::process_vm;
use crate::sys::twin::Twin;
use crate::sys::PAGE;

/// Memory to be copied: address, length, and a way to look into it, if it is ours.
pub(super) type Stretch<'a> = (u64, u64, Option<&'a View>);

/// The most that one system call is asked to copy.
const MOST: usize = 1 << 30;

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

impl Pages {
    /// Fills `buf` from `address` on, as of the instant.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        match self {
            Pages::Twin(twin) => match twin.read(address, buf) {
                Ok(len) if len == buf.len() => Ok(()),
                Ok(len) => Err(Error::refused(format!("the page at {:#x} was left out by the fork (MADV_DONTFORK), or the twin was killed; do not register such memory", address + len as u64))),
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

/// Memory for copies. What one snapshot has used is kept for the next: to make new pages costs more than to copy into them.
#[derive(Debug)]
pub(super) struct Shelf {
    limit: u64,
    state: Mutex<(u64, Option<Owned>)>,
}

impl Shelf {
    /// For copies of `limit` bytes at a time.
    pub fn new(limit: u64) -> Arc<Shelf> {
        Arc::new(Shelf { limit, state: Mutex::new((0, None)) })
    }

    /// How many bytes can be copied now.
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.state.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    fn take(&self, len: u64) -> Result<Owned> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A piece that is far too large is better given back.
        let fits = |memory: &Owned| (len..=len.saturating_mul(8).max(1 << 20)).contains(&(memory.len() as u64));
        let memory = match state.1.take().filter(fits) {
            Some(memory) => memory,
            None => Owned::new(len).context(format!("no memory for copies of {len} bytes"))?,
        };
        state.0 += memory.len() as u64;
        Ok(memory)
    }

    fn put_back(&self, memory: Owned) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 -= memory.len() as u64;
        if memory.len() as u64 <= self.limit {
            state.1 = Some(memory);
        }
    }
}

/// Pages copied in the pause: addresses, lengths and places in `memory`, in ascending order of addresses.
#[derive(Debug)]
pub(super) struct Copies {
    memory: Option<Owned>,
    shelf: Arc<Shelf>,
    entries: Vec<(u64, u64, u64)>,
}

impl Copies {
    /// Copies stretches of memory.
    pub fn take(stretches: &[Stretch<'_>], shelf: &Arc<Shelf>) -> Result<Copies> {
        let total = stretches.iter().map(|(_, len, _)| len).sum();
        let mut copies = Copies { memory: None, shelf: shelf.clone(), entries: Vec::with_capacity(stretches.len()) };
        let mut room = &mut copies.memory.insert(shelf.take(total)?)[..total as usize];
        let mut at = 0;
        for &(address, len, view) in stretches {
            let (piece, rest) = room.split_at_mut(len as usize);
            if !view.is_some_and(|view| view.read(address, piece)) {
                own(address, piece)?;
            }
            copies.entries.push((address, len, at));
            (at, room) = (at + len, rest);
        }
        copies.entries.sort_unstable();
        Ok(copies)
    }

    fn bytes(&self) -> &[u8] {
        self.memory.as_deref().unwrap_or_default()
    }

    /// The stretches, by address.
    pub fn each(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.entries.iter().map(|&(address, len, at)| (address, &self.bytes()[at as usize..(at + len) as usize]))
    }

    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        let next = self.entries.partition_point(|entry| entry.0 <= address);
        let found = next.checked_sub(1).map(|entry| self.entries[entry]).filter(|(start, len, _)| address + buf.len() as u64 <= start + len);
        let (start, _, at) = found.ok_or_else(|| Error::new(Kind::Usage, format!("nothing was copied from {address:#x}")))?;
        let at = (at + address - start) as usize;
        buf.copy_from_slice(&self.bytes()[at..at + buf.len()]);
        Ok(())
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.shelf.put_back(memory);
        }
    }
}

/// Reads our own memory by a system call, which other threads may be writing to.
pub(super) fn own(address: u64, buf: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let at = address + done as u64;
        let len = (buf.len() - done).min(MOST);
        let read = process_vm::read(std::process::id() as i32, &[(at, len)], &mut buf[done..done + len]);
        match read.context(format!("cannot read the region's memory at {at:#x}"))? {
            0 => return Err(Error::refused(format!("the region's memory at {at:#x} is gone; remove a region before its memory"))),
            len => done += len,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_of_stretches_are_copied_and_their_memory_is_used_again() {
        let numbers: Vec<u64> = (0..1 << 20).collect();
        let start = numbers.as_ptr() as u64;
        let shelf = Shelf::new(4 << 20);
        let stretches: Vec<Stretch<'_>> = (0..3000).rev().map(|n| (start + n * 1600, 800, None)).collect();
        let copies = Copies::take(&stretches, &shelf).unwrap();
        assert!(shelf.room() < 2 << 20);
        let mut seen = [0; 16];
        copies.read(start + 2999 * 1600 + 784, &mut seen).unwrap();
        assert_eq!(seen[8..], (2999u64 * 200 + 99).to_ne_bytes());
        assert_eq!(copies.read(start + 801, &mut seen).unwrap_err().kind(), Kind::Usage);
        assert!(copies.each().all(|(address, bytes)| bytes[..8] == ((address - start) / 8).to_ne_bytes()));
        let place = copies.bytes().as_ptr();
        drop(copies);
        assert_eq!(shelf.room(), 4 << 20);
        assert_eq!(Copies::take(&stretches[..2500], &shelf).unwrap().bytes().as_ptr(), place);
        let gone = Copies::take(&[(start, 8, None), (8, 8, None)], &shelf).unwrap_err();
        assert!(gone.to_string().contains("0x8"), "{gone}");
    }
}
