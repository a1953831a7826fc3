//! One address space that runs while its pages are still on their way.
//!
//! Two orders keep wrong data out. The kernel refuses to place pages while a change of the mappings is under way of which we
//! have not read yet (EAGAIN), and nobody places a page between our reading of a change and our heeding it (`order`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use super::pending::{Pending, Stretch};
use crate::error::{Error, Result};
use crate::image::{Chain, Piece, Source};
use crate::restore::fill;
use crate::sys::uffd::{Message, Uffd};
use crate::sys::{self, PAGE};

/// How much is placed at once: short enough that a message never waits long.
const PIECE: u64 = 128 << 10;

/// An address space with pages to come.
pub struct Space {
    uffd: Uffd,
    /// The object that holds its pages.
    object: u32,
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
    /// Whose `pending` pages, of this object, come by way of `uffd`.
    pub fn new(uffd: Uffd, object: u32, pending: Pending) -> Space {
        Space { uffd, object, pending: Mutex::new(pending), order: RwLock::new(()) }
    }

    /// What is still to come.
    pub fn pending(&self) -> MutexGuard<'_, Pending> {
        // Whoever panicked with it in hand has ended the pager by now.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run of the frame that holds what is to come to `address`; none if nothing is.
    pub fn source<'a>(&self, chain: &'a Chain, address: u64) -> Option<&'a Piece> {
        let origin = self.pending().at(address)?.origin;
        let runs = chain.runs(self.object);
        runs.get(runs.partition_point(|run| run.end() <= origin))
    }

    /// Whether something of a run is to come here.
    pub fn awaits(&self, run: &Piece) -> bool {
        run.object == self.object && self.pending().of_origin(run.offset, run.end()).is_some()
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
                    news.children.push(Space::new(uffd.into(), self.object, self.pending().clone()));
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

    /// Places the page at `address`, before all others, if it is still to come from `run`, whose block has the content `raw`.
    pub fn place_page(&self, address: u64, run: &Piece, raw: &[u8]) -> Result<()> {
        let inside = |stretch: &Stretch| (run.offset..run.end()).contains(&stretch.origin);
        while self.place_one(run, raw, &|pending| pending.at(address).filter(inside).map(|stretch| Stretch { len: PAGE, ..stretch }))? {}
        Ok(())
    }

    /// Places all that is to come from `run`, whose block has the content `raw`.
    pub fn place(&self, run: &Piece, raw: &[u8]) -> Result<()> {
        let next = |pending: &Pending| pending.of_origin(run.offset, run.end()).map(|stretch| Stretch { len: stretch.len.min(PIECE), ..stretch });
        while run.object == self.object && self.place_one(run, raw, &next)? {}
        Ok(())
    }

    /// Places what `find` finds; false if that is nothing.
    fn place_one(&self, run: &Piece, raw: &[u8], find: &dyn Fn(&Pending) -> Option<Stretch>) -> Result<bool> {
        let order = self.order.read().unwrap_or_else(PoisonError::into_inner);
        let (Some(stretch), Source::Data { at, .. }) = (find(&self.pending()), run.source) else { return Ok(false) };
        // A block is much shorter than 4 GiB.
        let bytes = fill::slice(raw, at + (stretch.origin - run.offset) as u32, stretch.len)?;
        let address = stretch.address;
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
