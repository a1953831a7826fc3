//! A ticket: what became of a snapshot after the program went on.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::deliver::Job;
use crate::error::{Context, Error, Kind, Result};
use crate::store::FrameRef;

/// How safe a snapshot is; each level includes those before it. The numbers are those of the C interface.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Level {
    /// The regions may be changed; the snapshot lives in memory.
    Frozen = 0,
    /// All of it is written to a file, and no memory is held for it any more; it is not under its name yet.
    Local = 1,
    /// Synced to storage and listed under its number: it survives a crash of the machine.
    Stored = 2,
    /// Read back from the store, every checksum right.
    Verified = 3,
}

impl Level {
    const ALL: [Level; 4] = [Level::Frozen, Level::Local, Level::Stored, Level::Verified];

    /// The level of a number.
    pub fn from_number(number: i32) -> Option<Level> {
        Level::ALL.into_iter().find(|&level| level as i32 == number)
    }
}

/// What is known of a snapshot so far.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its reference in the store, from [`Level::Stored`] on.
    pub frame: Option<FrameRef>,
    /// How far it is.
    pub level: Level,
    /// How the pages were frozen: `fork`, `write-protect` or `copy`.
    pub method: &'static str,
    /// Why that way, in words.
    pub why: String,
    /// How long the caller of `snapshot` was held up, in nanoseconds.
    pub pause_ns: u64,
    /// From the call of `snapshot` to [`Level::Stored`], in nanoseconds; 0 before.
    pub stored_ns: u64,
    /// Bytes of regions that the snapshot covers.
    pub bytes: u64,
    /// Bytes of regions that were read and stored for it: fewer than `bytes` in an increment.
    pub changed_bytes: u64,
    /// Length of its file, from [`Level::Local`] on; 0 before.
    pub file_bytes: u64,
    /// Bytes of regions copied aside so far, in the pause or because the program wrote to them. With `fork` the kernel copies,
    /// and does not count.
    pub copied_bytes: u64,
    /// The most memory that copies set aside took at one time, in bytes.
    pub peak_copied_bytes: u64,
    /// The frame it builds upon; none if it stands alone.
    pub parent: Option<FrameRef>,
}

#[derive(Debug)]
struct Status {
    info: Info,
    /// Set once, by whatever ended it early.
    failed: Option<Error>,
    /// The session ended before anybody could read it back.
    unread: bool,
}

/// What ticket, session and transfer thread share.
#[derive(Debug)]
pub(super) struct Progress {
    status: Mutex<Status>,
    changed: Condvar,
    event: EventFd,
    cancelled: AtomicBool,
    started: Instant,
}

impl Progress {
    pub fn new(started: Instant) -> Result<Arc<Progress>> {
        let info = Info {
            frame: None,
            level: Level::Frozen,
            method: "fork",
            why: String::new(),
            pause_ns: 0,
            stored_ns: 0,
            bytes: 0,
            changed_bytes: 0,
            file_bytes: 0,
            copied_bytes: 0,
            peak_copied_bytes: 0,
            parent: None,
        };
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("cannot make an eventfd for a ticket")?;
        Ok(Arc::new(Progress { status: Mutex::new(Status { info, failed: None, unread: false }), changed: Condvar::new(), event, cancelled: AtomicBool::new(false), started }))
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn info(&self) -> Info {
        self.status().info.clone()
    }

    pub fn update(&self, change: impl FnOnce(&mut Info)) {
        change(&mut self.status().info);
    }

    pub fn reach(&self, level: Level) {
        self.update(|info| info.level = level);
        self.announce();
    }

    pub fn fail(&self, error: Error) {
        self.status().failed.get_or_insert(error);
        self.announce();
    }

    pub fn failure(&self) -> Option<Error> {
        self.status().failed.clone()
    }

    fn stay_unread(&self) {
        self.status().unread = true;
        self.announce();
    }

    /// An error once the caller has given it up.
    pub fn check(&self) -> Result<()> {
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(Error::new(Kind::Cancelled, "the snapshot was cancelled")),
            false => Ok(()),
        }
    }

    /// Wakes whoever waits, in whichever way.
    fn announce(&self) {
        self.changed.notify_all();
        // It overflows only if nobody reads it, who then is not waiting.
        let _ = self.event.write(1);
    }
}

/// The order to read a snapshot back. Whoever waits for that is told if it is dropped instead.
#[derive(Debug)]
pub(super) struct Check(Option<Arc<Progress>>);

impl Check {
    /// What is to be read back.
    pub fn take(mut self) -> Option<Arc<Progress>> {
        self.0.take()
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if let Some(progress) = self.0.take() {
            progress.stay_unread();
        }
    }
}

/// A snapshot on its way to the store. Dropping it changes nothing: the snapshot goes on.
///
/// ```
/// use std::time::Duration;
/// use stillframe::region::{Level, Session};
///
/// # let dir = tempfile::tempdir()?;
/// let session = Session::builder("numbers").store(dir.path()).open()?;
/// let mut squares = session.alloc::<u64>("squares", 1000)?;
/// squares.iter_mut().enumerate().for_each(|(n, square)| *square = (n * n) as u64);
/// let ticket = session.snapshot(&"all of them")?;
/// squares[10] = 0; // the snapshot still holds 100
/// let info = ticket.wait(Level::Stored, Duration::from_secs(60))?;
/// println!("{} held us up for {} ns", info.frame.unwrap(), info.pause_ns);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Ticket {
    pub(super) progress: Arc<Progress>,
    pub(super) skipped: bool,
    pub(super) jobs: Sender<Job>,
}

impl Ticket {
    /// Waits until the snapshot has reached `level`, for `timeout` at most. [`Level::Verified`] is worked towards once somebody
    /// waits for it.
    ///
    /// # Errors
    ///
    /// What made the snapshot fail; [`Kind::TimedOut`] if it takes longer, and then it goes on; [`Kind::Cancelled`].
    pub fn wait(&self, level: Level, timeout: Duration) -> Result<Info> {
        let deadline = Instant::now().checked_add(timeout);
        if level == Level::Verified && self.info().level < level {
            // Behind the snapshot itself in the same queue. What a closed session does not take is dropped, and so told.
            let _ = self.jobs.send(Job::Verify(Check(Some(self.progress.clone()))));
        }
        let mut status = self.progress.status();
        loop {
            if let Some(error) = &status.failed {
                return Err(error.clone());
            }
            if status.info.level >= level {
                return Ok(status.info.clone());
            }
            if status.unread && level == Level::Verified {
                return Err(Error::new(Kind::Usage, "the session was closed before the snapshot was read back; use `stillframe verify`"));
            }
            let left = deadline.map_or(Duration::from_secs(3600), |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(Error::new(Kind::TimedOut, format!("the snapshot is {:?}, not yet {level:?}; wait longer", status.info.level)));
            }
            status = self.progress.changed.wait_timeout(status, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What is known now.
    pub fn info(&self) -> Info {
        self.progress.info()
    }

    /// What made it fail, if something did.
    pub fn failure(&self) -> Option<Error> {
        self.progress.failure()
    }

    /// Whether no snapshot was taken because one was in flight ([`super::InFlight::Skip`]).
    pub fn is_skipped(&self) -> bool {
        self.skipped
    }

    /// Gives it up, if it is not stored yet: its memory is given back soon, and the store shows nothing of it.
    pub fn cancel(&self) {
        self.progress.cancelled.store(true, Ordering::Relaxed);
    }
}

/// An eventfd for event loops: readable when a level was reached or the snapshot failed. Reading eight bytes resets it.
impl AsFd for Ticket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.progress.event.as_fd()
    }
}
