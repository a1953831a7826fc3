//! One address space that runs while its pages are still on their way.
//!
//! Two orders keep wrong data out. The kernel refuses to place pages while a change of the mappings is under way of which we
//! have not read yet (EAGAIN), and nobody places a page between our reading of a change and our heeding it (`order`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use super::pending::{Extent, Pending};
use crate::error::{Error, Result};
use crate::image::BlockId;
use crate::restore::fill;
use crate::sys::uffd::{Message, Uffd};
use crate::sys::{self, PAGE};

/// How much is placed at once: short enough that a message never waits long.
const PIECE: u64 = 128 << 10;

/// An address space with pages to come.
pub struct Space {
    uffd: Uffd,
    pending: Mutex<Pending>,
    /// Shared by those who place pages, ours alone while messages are read and heeded.
    order: RwLock<()>,
}

/// What an address space tells.
#[derive(Default)]
pub struct News {
    /// Page addresses at which threads wait.
    pub faults: Vec<u64>,
    /// Copies of the space, for children.
    pub children: Vec<Space>,
}

impl Space {
    /// Whose `pending` pages come by way of `uffd`.
    pub fn new(uffd: Uffd, pending: Pending) -> Space {
        Space { uffd, pending: Mutex::new(pending), order: RwLock::new(()) }
    }

    /// What is still to come.
    pub fn pending(&self) -> MutexGuard<'_, Pending> {
        // Whoever panicked with it in hand has ended the pager by now.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when there are messages.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    /// Reads what the kernel has to tell and heeds changes of the mappings.
    pub fn listen(&self) -> Result<News> {
        let _alone = self.order.write().unwrap_or_else(PoisonError::into_inner);
        let mut news = News::default();
        for message in self.uffd.messages().map_err(|e| Error::io("cannot read from a userfaultfd", e))? {
            match message {
                Message::Fault { address, .. } => news.faults.push(address),
                Message::Remove { start, end } | Message::Unmap { start, end } => self.pending().forget(start, end),
                Message::Remap { from, to, len } => self.pending().relocate(from, to, len),
                Message::Fork { fd } => {
                    let uffd = sys::fd::own(fd).map_err(|e| Error::io("cannot take over the userfaultfd of a child", e))?;
                    news.children.push(Space::new(uffd.into(), self.pending().clone()));
                }
                Message::Other(kind) => return Err(Error::refused(format!("this kernel's userfaultfd tells of something unknown (message {kind:#x}); restore without --lazy"))),
            }
        }
        Ok(news)
    }

    /// A thread waits at a page to which nothing is to come: it reads zero. False if that must be asked again later.
    pub fn zero(&self, address: u64) -> Result<bool> {
        match self.uffd.zero(address, PAGE, true) {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => return Ok(false),
            Err(e) if e.raw_os_error() == Some(libc::ENOMEM) => return Err(no_memory(e)),
            Ok(_) => {}
            // It has come in the meantime, or is not ours any more: the thread looks again.
            Err(_) => drop(self.uffd.wake(address, PAGE)),
        }
        Ok(true)
    }

    /// Places the page at `address`, before all others, if it is still to come from `block`.
    pub fn place_page(&self, address: u64, block: BlockId, raw: &[u8]) -> Result<()> {
        let find = |pending: &Pending| pending.at(address).filter(|extent| extent.block == block).map(|extent| (address, Extent { len: PAGE, ..extent }));
        while self.place_one(raw, &find)? {}
        Ok(())
    }

    /// Places all that is to come from `block`.
    pub fn place(&self, block: BlockId, raw: &[u8]) -> Result<()> {
        let find = |pending: &Pending| pending.of_block(block).map(|(address, extent)| (address, Extent { len: extent.len.min(PIECE), ..extent }));
        while self.place_one(raw, &find)? {}
        Ok(())
    }

    /// Places what `find` finds; false if that is nothing.
    fn place_one(&self, raw: &[u8], find: &dyn Fn(&Pending) -> Option<(u64, Extent)>) -> Result<bool> {
        let order = self.order.read().unwrap_or_else(PoisonError::into_inner);
        let Some((address, extent)) = find(&self.pending()) else { return Ok(false) };
        let bytes = fill::slice(raw, extent.at, extent.len)?;
        let placed = match self.uffd.copy(address, bytes, true) {
            // Mappings of different kinds meet inside, or it is no longer a mapping: one by one.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self.copy_page(address, bytes.get(..PAGE as usize).unwrap_or(bytes)),
            placed => placed,
        };
        match placed {
            Ok(len) => self.pending().forget(address, address + len),
            Err(e) => match e.raw_os_error() {
                Some(libc::EAGAIN) => {
                    drop(order);
                    // Until the change that is under way has been read.
                    thread::sleep(Duration::from_micros(50));
                }
                Some(libc::EEXIST) => {
                    self.pending().forget(address, address + PAGE);
                    let _ = self.uffd.wake(address, PAGE);
                }
                Some(libc::ENOENT) => self.pending().forget(address, address + PAGE),
                // The process is gone, or runs another program.
                Some(libc::ESRCH) => self.pending().forget(0, u64::MAX),
                Some(libc::ENOMEM) => return Err(no_memory(e)),
                _ => return Err(Error::io(format!("cannot place a page at {address:#x}"), e)),
            },
        }
        Ok(true)
    }

    /// Had the first refusal come from a change of which we have not read, the second answer would be EAGAIN: two of a kind
    /// mean that there is no such page.
    fn copy_page(&self, address: u64, page: &[u8]) -> io::Result<u64> {
        match self.uffd.copy(address, page, true) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => self.uffd.copy(address, page, true),
            placed => placed,
        }
    }
}

fn no_memory(e: io::Error) -> Error {
    Error::io("there is no memory left for the pages of the instance", e)
}
