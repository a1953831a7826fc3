//! userfaultfd(2): write protection that the kernel lifts by itself, and page faults answered from outside.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;

/// Flag of the system call: faults of the kernel itself are not reported; in return no privilege is needed.
pub const USER_MODE_ONLY: i32 = 1;

/// Features asked for at the handshake.
pub mod feature {
    /// Faults on write-protected pages can be told from others.
    pub const WP: u64 = 1;
    /// A message when the process forks, with a userfaultfd for the child.
    pub const EVENT_FORK: u64 = 1 << 1;
    /// A message when mappings move.
    pub const EVENT_REMAP: u64 = 1 << 2;
    /// A message when pages are dropped.
    pub const EVENT_REMOVE: u64 = 1 << 3;
    /// A message when mappings go.
    pub const EVENT_UNMAP: u64 = 1 << 6;
    /// A missing page is refused: a signal for whoever touches it, EFAULT for a system call.
    pub const SIGBUS: u64 = 1 << 7;
    /// Write protection of shared memory.
    pub const WP_SHMEM: u64 = 1 << 12;
    /// Pages that are not there yet can be write-protected.
    pub const WP_UNPOPULATED: u64 = 1 << 13;
    /// The kernel lifts write protection by itself and only remembers that it did.
    pub const WP_ASYNC: u64 = 1 << 15;
}

/// What a registered range reports.
pub mod mode {
    /// Faults on missing pages.
    pub const MISSING: u64 = 1;
    /// Writes to protected pages.
    pub const WP: u64 = 2;
}

/// A message of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A thread waits at an address; `write` and `protected` tell why.
    Fault {
        /// Page-aligned address.
        address: u64,
        /// It wants to write.
        write: bool,
        /// The page is there and write-protected.
        protected: bool,
    },
    /// The process forked; the child's userfaultfd is descriptor `fd` of ours.
    Fork {
        /// A new descriptor of the reader.
        fd: i32,
    },
    /// [`from`, `from` + `len`) moved to `to`.
    Remap {
        /// Old address.
        from: u64,
        /// New address.
        to: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The pages of [`start`, `end`) were dropped and read as zero.
    Remove {
        /// First address.
        start: u64,
        /// Address behind the last byte.
        end: u64,
    },
    /// [`start`, `end`) is no longer mapped.
    Unmap {
        /// First address.
        start: u64,
        /// Address behind the last byte.
        end: u64,
    },
    /// A kind that this program does not know.
    Other(u8),
}

const API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;

const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;

const COPY_DONT_WAKE: u64 = 1;
const MESSAGE_LEN: usize = 32;

/// A userfaultfd. It watches the memory of the process that created it, from whichever process it is used.
#[derive(Debug)]
pub struct Uffd(File);

impl Uffd {
    /// Makes one for our own memory; `flags` may be [`USER_MODE_ONLY`].
    pub fn own(flags: i32) -> io::Result<Uffd> {
        // SAFETY: plain numbers; on success the descriptor is new and ours.
        let fd = unsafe { check(libc::syscall(libc::SYS_userfaultfd, flags | libc::O_CLOEXEC | libc::O_NONBLOCK)).map(|fd| OwnedFd::from_raw_fd(fd as i32))? };
        Ok(Uffd::from(fd))
    }

    /// Makes one that is told of faults of the kernel too, as in read(2) into our memory: by privilege, or by the right to use
    /// /dev/userfaultfd.
    pub fn for_all_faults() -> io::Result<Uffd> {
        Uffd::own(0).or_else(|e| {
            let device = File::open("/dev/userfaultfd").map_err(|_| e)?;
            // SAFETY: plain numbers; on success the descriptor is new and ours.
            let fd = unsafe { check(libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK).into()).map(|fd| OwnedFd::from_raw_fd(fd as i32))? };
            Ok(Uffd::from(fd))
        })
    }

    /// The handshake: asks for features, once.
    pub fn handshake(&self, features: u64) -> io::Result<()> {
        let mut arg = [API, features, 0];
        self.control(UFFDIO_API, &mut arg).map(drop)
    }

    /// Watches [`start`, `start` + `len`) for what `modes` says.
    pub fn register(&self, start: u64, len: u64, modes: u64) -> io::Result<()> {
        let mut arg = [start, len, modes, 0];
        self.control(UFFDIO_REGISTER, &mut arg).map(drop)
    }

    /// Ends the watch of a range; threads that wait there run on.
    pub fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        let mut arg = [start, len];
        self.control(UFFDIO_UNREGISTER, &mut arg).map(drop)
    }

    /// Lets threads that wait in a range try again.
    pub fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        let mut arg = [start, len];
        self.control(UFFDIO_WAKE, &mut arg).map(drop)
    }

    /// Write-protects a registered range, or lifts the protection and wakes who waits for that.
    pub fn write_protect(&self, start: u64, len: u64, on: bool) -> io::Result<()> {
        let mut arg = [start, len, u64::from(on)];
        self.control(UFFDIO_WRITEPROTECT, &mut arg).map(drop)
    }

    /// Puts whole pages at missing addresses from `to` on; returns how many bytes were placed. EEXIST: a page is there already.
    pub fn copy(&self, to: u64, bytes: &[u8], wake: bool) -> io::Result<u64> {
        let flags = if wake { 0 } else { COPY_DONT_WAKE };
        let mut arg = [to, bytes.as_ptr() as u64, bytes.len() as u64, flags, 0];
        placed(self.control(UFFDIO_COPY, &mut arg), arg[4])
    }

    /// The same with zero pages.
    pub fn zero(&self, to: u64, len: u64, wake: bool) -> io::Result<u64> {
        let flags = if wake { 0 } else { COPY_DONT_WAKE };
        let mut arg = [to, len, flags, 0];
        placed(self.control(UFFDIO_ZEROPAGE, &mut arg), arg[3])
    }

    /// The messages that have come, up to 64; none if there is nothing to read.
    pub fn messages(&self) -> io::Result<Vec<Message>> {
        let mut bytes = [0; 64 * MESSAGE_LEN];
        match (&self.0).read(&mut bytes) {
            Ok(len) => Ok(bytes[..len].chunks_exact(MESSAGE_LEN).map(message).collect()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    fn control<const N: usize>(&self, request: libc::c_ulong, arg: &mut [u64; N]) -> io::Result<libc::c_long> {
        // SAFETY: the argument is live and has the words that the request states; source addresses in it come from live slices.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, arg.as_mut_ptr()) }.into())
    }
}

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Uffd(fd.into())
    }
}

impl std::os::fd::AsFd for Uffd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A call that stopped half-way says how far it came.
fn placed(result: io::Result<libc::c_long>, count: u64) -> io::Result<u64> {
    match result {
        Err(e) if (count as i64) <= 0 => Err(e),
        _ => Ok(count),
    }
}

fn message(bytes: &[u8]) -> Message {
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |word| u64::from_ne_bytes(*word));
    let (a, b, c) = (word(8), word(16), word(24));
    match bytes[0] {
        0x12 => Message::Fault { address: b & !(super::PAGE - 1), write: a & 1 != 0, protected: a & 2 != 0 },
        0x13 => Message::Fork { fd: a as u32 as i32 },
        0x14 => Message::Remap { from: a, to: b, len: c },
        0x15 => Message::Remove { start: a, end: b },
        0x16 => Message::Unmap { start: a, end: b },
        other => Message::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::PAGE;

    fn anonymous(pages: u64) -> u64 {
        // SAFETY: a fresh mapping that nobody else knows of; it stays for the rest of the test process.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), (pages * PAGE) as usize, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        at as u64
    }

    #[test]
    fn missing_pages_are_put_in_place_once() {
        let uffd = Uffd::own(USER_MODE_ONLY).unwrap();
        uffd.handshake(feature::EVENT_REMOVE).unwrap();
        let at = anonymous(3);
        uffd.register(at, 3 * PAGE, mode::MISSING).unwrap();
        let page = vec![7u8; PAGE as usize];
        assert_eq!(uffd.copy(at, &page, true).unwrap(), PAGE);
        assert_eq!(uffd.copy(at, &page, true).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert_eq!(uffd.zero(at + PAGE, PAGE, true).unwrap(), PAGE);
        // SAFETY: both pages were just put in place.
        assert_eq!(unsafe { (*(at as *const u8), *((at + PAGE) as *const u8)) }, (7, 0));
        assert!(uffd.messages().unwrap().is_empty());
        uffd.unregister(at, 3 * PAGE).unwrap();
    }

    #[test]
    fn a_missing_page_is_reported_and_its_reader_woken() {
        let uffd = Uffd::own(USER_MODE_ONLY).unwrap();
        uffd.handshake(0).unwrap();
        let at = anonymous(1);
        uffd.register(at, PAGE, mode::MISSING).unwrap();
        // SAFETY: the page is mapped; the read waits until it is put in place.
        let reader = std::thread::spawn(move || unsafe { std::ptr::read_volatile(at as *const u8) });
        let seen = loop {
            match uffd.messages().unwrap().first() {
                Some(message) => break *message,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(seen, Message::Fault { address: at, write: false, protected: false });
        uffd.copy(at, &vec![9; PAGE as usize], true).unwrap();
        assert_eq!(reader.join().unwrap(), 9);
    }
}
