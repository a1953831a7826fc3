//! The file behind a sink: how a piece gets into it, and how fast that goes.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::direct::{finish_writeback, start_writeback};

/// What direct writes must be a multiple of; no disk wants more.
pub const SECTOR: usize = 4096;
/// How far the write-back of what went through the cache may lag behind.
const LAG: u64 = 16 << 20;

/// A file, and a way past the page cache where there is one.
pub struct Target {
    pub file: File,
    direct: Option<File>,
    /// A direct write was refused.
    refused: AtomicBool,
    clock: Mutex<Clock>,
}

/// How long at least one write was under way, and what came of it.
#[derive(Default)]
struct Clock {
    under_way: u32,
    since: Option<Instant>,
    busy: Duration,
    bytes: u64,
}

impl Target {
    /// Passes by the page cache where the file system lets us.
    pub fn direct(file: File) -> Target {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // Opened anew: the flag would else show in every duplicate of the descriptor.
        let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok();
        Target { direct, ..Target::cached(file) }
    }

    /// Goes through the page cache.
    pub fn cached(file: File) -> Target {
        Target { file, direct: None, refused: AtomicBool::new(false), clock: Mutex::default() }
    }

    /// Writes all of `bytes`, which start at a page, to `at`, a multiple of [`SECTOR`].
    pub fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.begin();
        let written = self.write_all(bytes, at);
        self.end(bytes.len());
        written
    }

    /// Bytes a second while any write was under way.
    pub fn speed(&self) -> Option<f64> {
        let clock = self.clock();
        (!clock.busy.is_zero()).then(|| clock.bytes as f64 / clock.busy.as_secs_f64())
    }

    fn write_all(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        if let Some(direct) = self.direct.as_ref().filter(|_| !self.refused.load(Ordering::Relaxed)) {
            let whole = bytes.len() - bytes.len() % SECTOR;
            done = write_sectors(&bytes[..whole], |part, done| direct.write_at(part, at + done))?;
            // A disk that takes nothing directly would refuse the next piece too.
            self.refused.store(done == 0 && whole > 0, Ordering::Relaxed);
        }
        if done == bytes.len() {
            return Ok(());
        }
        self.file.write_all_at(&bytes[done..], at + done as u64)?;
        // What cannot be written back is told by the sync; files that have no disk know no write-back.
        let _ = start_writeback(&self.file, at, bytes.len() as u64);
        if at >= LAG {
            let _ = finish_writeback(&self.file, at - LAG, bytes.len() as u64);
        }
        Ok(())
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) {
        let mut clock = self.clock();
        clock.under_way += 1;
        clock.since.get_or_insert_with(Instant::now);
    }

    fn end(&self, len: usize) {
        let mut clock = self.clock();
        clock.under_way -= 1;
        clock.bytes += len as u64;
        let passed = clock.since.map_or(Duration::ZERO, |since| since.elapsed());
        clock.busy += passed;
        clock.since = (clock.under_way > 0).then(Instant::now);
    }
}

/// Writes whole sectors until all are written or a direct write can go no further; returns how many bytes are.
fn write_sectors(bytes: &[u8], mut write: impl FnMut(&[u8], u64) -> io::Result<usize>) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match write(&bytes[done..], done as u64) {
            // The rest of a sector cannot be written directly.
            Ok(len) if len % SECTOR != 0 => return Ok(done + len),
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(len) => done += len,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(done),
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets each write end as told; returns what was asked for and the outcome.
    fn run(len: usize, outcomes: &[io::Result<usize>]) -> (Vec<(usize, u64)>, io::Result<usize>) {
        let mut asked = Vec::new();
        let outcome = write_sectors(&vec![0; len], |part, at| {
            asked.push((part.len(), at));
            match &outcomes[asked.len() - 1] {
                Ok(len) => Ok(*len),
                Err(e) => Err(e.raw_os_error().map_or_else(|| e.kind().into(), io::Error::from_raw_os_error)),
            }
        });
        (asked, outcome)
    }

    fn failing(errno: i32) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn short_and_interrupted_writes_are_continued() {
        let (asked, outcome) = run(5 * SECTOR, &[Ok(SECTOR), failing(libc::EINTR), Ok(3 * SECTOR), Ok(SECTOR)]);
        assert_eq!(outcome.unwrap(), 5 * SECTOR);
        assert_eq!(asked, [(5 * SECTOR, 0), (4 * SECTOR, 4096), (4 * SECTOR, 4096), (SECTOR, 4 * 4096)]);
    }

    #[test]
    fn what_cannot_go_directly_is_left_to_the_cache() {
        assert_eq!(run(2 * SECTOR, &[Ok(SECTOR), failing(libc::EINVAL)]).1.unwrap(), SECTOR);
        assert_eq!(run(2 * SECTOR, &[failing(libc::EINVAL)]).1.unwrap(), 0);
        assert_eq!(run(2 * SECTOR, &[Ok(SECTOR + 512)]).1.unwrap(), SECTOR + 512);
        assert_eq!(run(0, &[]).1.unwrap(), 0);
    }

    #[test]
    fn failures_are_failures() {
        assert_eq!(run(SECTOR, &[failing(libc::ENOSPC)]).1.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(run(SECTOR, &[Ok(0)]).1.unwrap_err().kind(), ErrorKind::WriteZero);
    }

    #[test]
    fn the_clock_counts_time_in_which_a_write_was_under_way() {
        let target = Target::cached(tempfile::tempfile().unwrap());
        assert_eq!(target.speed(), None);
        target.begin();
        target.begin();
        std::thread::sleep(Duration::from_millis(20));
        target.end(1000);
        target.end(1000);
        let speed = target.speed().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(target.speed(), Some(speed));
        assert!(speed <= 2000.0 / 0.020, "{speed}");
    }
}
