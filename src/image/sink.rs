//! Where the bytes of a frame go: to the disk past the page cache, in large aligned pieces of which two are under way at a time.
//!
//! Pieces are gathered in buffers of 4 MiB in huge pages; the file's room is reserved ahead. On most disks this is faster than
//! `dd oflag=direct`, and it leaves the page cache to the programs. A file system without direct writes gets the same pieces
//! through the cache, and is made to write them back at once, so that the sync at the end finds little to do. A frame that fits
//! one buffer is written without any thread.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{unbounded, Receiver, Sender};
use nix::fcntl::{fallocate, FallocateFlags};

mod target;

use crate::sys::direct::Buffer;
use target::{Target, SECTOR};

/// What one write takes at most.
const PIECE: usize = 4 << 20;
/// Pieces under way at a time.
const DEPTH: usize = 2;
/// One more is being filled, and one is ready to be.
const BUFFERS: usize = DEPTH + 2;
/// How far ahead the file's room is reserved.
const RESERVE: u64 = 64 << 20;

/// A file that is written from front to back.
pub(super) struct Sink {
    target: Arc<Target>,
    crew: Option<Crew>,
    /// Buffers made so far.
    made: usize,
    idle: Vec<Buffer>,
    filling: Option<Buffer>,
    filled: usize,
    /// How far a buffer is filled.
    piece: usize,
    /// Where in the file the buffer being filled belongs.
    at: u64,
    /// How far the file's room is reserved.
    reserved: u64,
    reservable: bool,
    failed: Option<io::Error>,
}

impl Sink {
    /// Starts at the beginning of `file`.
    pub fn new(file: File) -> Sink {
        Sink::with(Target::direct(file))
    }

    fn with(target: Target) -> Sink {
        Sink {
            target: Arc::new(target),
            crew: None,
            made: 0,
            idle: Vec::new(),
            filling: None,
            filled: 0,
            piece: PIECE,
            at: 0,
            reserved: 0,
            reservable: true,
            failed: None,
        }
    }

    /// Writes in pieces of about `len` bytes from now on, where the default would come in bursts.
    pub fn set_piece(&mut self, len: usize) {
        // What is gathered already has to fit.
        self.piece = len.max(self.filled + 1).next_multiple_of(SECTOR).min(PIECE);
    }

    /// Takes bytes; a failure may be that of an earlier piece.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut buffer = self.buffer()?;
            let (now, later) = bytes.split_at(bytes.len().min(self.piece - self.filled));
            buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled < self.piece {
                self.filling = Some(buffer);
            } else {
                self.send(buffer)?;
            }
        }
        Ok(())
    }

    /// Waits until all whole pieces are written.
    pub fn drain(&mut self) -> io::Result<()> {
        while self.idle.len() + usize::from(self.filling.is_some()) < self.made {
            let buffer = self.wait()?;
            self.idle.push(buffer);
        }
        Ok(())
    }

    /// Bytes a second that the file has taken while it was kept busy; nothing before the first piece is written.
    pub fn speed(&self) -> Option<f64> {
        self.target.speed()
    }

    /// Writes the rest and gives the file back, still to be synced.
    pub fn finish(mut self) -> io::Result<File> {
        self.drain()?;
        if let Some(buffer) = self.filling.take() {
            self.target.write(&buffer[..self.filled], self.at)?;
        }
        let file = self.target.file.try_clone()?;
        if self.reserved > 0 {
            file.set_len(self.at + self.filled as u64)?;
        }
        Ok(file)
    }

    /// The buffer to fill.
    fn buffer(&mut self) -> io::Result<Buffer> {
        match self.filling.take().or_else(|| self.idle.pop()) {
            Some(buffer) => Ok(buffer),
            None if self.made < BUFFERS => {
                self.made += 1;
                Buffer::new(PIECE)
            }
            None => self.wait(),
        }
    }

    /// The next buffer that comes back.
    fn wait(&mut self) -> io::Result<Buffer> {
        match (&self.failed, &self.crew) {
            (None, Some(crew)) => match crew.done.recv().map_err(|_| ErrorKind::BrokenPipe)? {
                (buffer, Ok(())) => Ok(buffer),
                (_, Err(failed)) => Err(again(self.failed.insert(failed))),
            },
            (Some(failed), _) => Err(again(failed)),
            (None, None) => Err(ErrorKind::BrokenPipe.into()),
        }
    }

    /// Sends a filled buffer on its way.
    fn send(&mut self, buffer: Buffer) -> io::Result<()> {
        let (at, len) = (self.at, std::mem::take(&mut self.filled));
        self.at += len as u64;
        self.reserve();
        let target = &self.target;
        let crew = self.crew.get_or_insert_with(|| Crew::start(target));
        let sent = crew.jobs.as_ref().is_some_and(|jobs| jobs.send(Job { buffer, len, at }).is_ok());
        sent.then_some(()).ok_or_else(|| ErrorKind::BrokenPipe.into())
    }

    /// Writes into reserved room do not wait for one another. What cannot be reserved may still be written.
    fn reserve(&mut self) {
        if self.reservable && self.reserved < self.at {
            self.reservable = fallocate(&self.target.file, FallocateFlags::empty(), self.reserved as i64, RESERVE as i64).is_ok();
            self.reserved += if self.reservable { RESERVE } else { 0 };
        }
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("file", &self.target.file).field("at", &self.at).field("filled", &self.filled).finish_non_exhaustive()
    }
}

/// The same failure once more.
fn again(failed: &io::Error) -> io::Error {
    failed.raw_os_error().map_or_else(|| failed.kind().into(), io::Error::from_raw_os_error)
}

struct Job {
    buffer: Buffer,
    len: usize,
    at: u64,
}

/// The threads that write; they end when dropped, after what is under way.
struct Crew {
    jobs: Option<Sender<Job>>,
    done: Receiver<(Buffer, io::Result<()>)>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    fn start(target: &Arc<Target>) -> Crew {
        let (jobs, queue) = unbounded::<Job>();
        let (back, done) = unbounded();
        let work = |_| {
            let (target, queue, back) = (target.clone(), queue.clone(), back.clone());
            std::thread::spawn(move || {
                for job in queue {
                    let written = target.write(&job.buffer[..job.len], job.at);
                    if back.send((job.buffer, written)).is_err() {
                        return;
                    }
                }
            })
        };
        Crew { threads: (0..DEPTH).map(work).collect(), jobs: Some(jobs), done }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.jobs = None;
        // One that panicked has nothing more to write either.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    /// Pieces of any length, among them such that end at the end of a buffer.
    fn parts() -> impl Iterator<Item = Vec<u8>> {
        let lengths = [1, 4095, PIECE - 4096, PIECE, 3, 2 * PIECE + 77, 0, 1 << 20, 6 * PIECE, 20];
        (1u8..).zip(lengths).map(|(byte, len)| vec![byte; len])
    }

    fn written(sink: Sink, path: &std::path::Path, piece: usize) {
        let mut sink = sink;
        sink.set_piece(piece);
        let mut expected = Vec::new();
        for part in parts() {
            sink.write(&part).unwrap();
            expected.extend_from_slice(&part);
            if part.len() == 3 {
                sink.drain().unwrap();
                sink.drain().unwrap();
            }
        }
        assert!(sink.speed().is_some_and(|speed| speed > 1e6));
        sink.finish().unwrap().sync_all().unwrap();
        assert!(std::fs::read(path).unwrap() == expected, "pieces of {piece}");
    }

    #[test]
    fn bytes_arrive_by_every_way_and_in_every_piece() {
        // On a disk: a directory in memory takes direct writes for ordinary ones.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("file");
        for piece in [PIECE, 1, 100_000] {
            let file = || OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
            written(Sink::new(file()), &path, piece);
            written(Sink::with(Target::cached(file())), &path, piece);
        }
    }

    #[test]
    fn a_small_file_takes_no_thread_and_no_more_room_than_it_has_bytes() {
        let file = tempfile::tempfile().unwrap();
        let mut sink = Sink::new(file);
        sink.write(&[1; 5000]).unwrap();
        assert!(sink.crew.is_none());
        assert_eq!(sink.finish().unwrap().metadata().unwrap().len(), 5000);
    }

    #[test]
    fn a_smaller_piece_leaves_room_for_what_is_gathered() {
        let mut sink = Sink::new(tempfile::tempfile().unwrap());
        sink.write(&[1; 10_000]).unwrap();
        for (len, piece) in [(1, 12_288), (20_000, 20_480), (usize::MAX / 2, PIECE)] {
            sink.set_piece(len);
            assert_eq!(sink.piece, piece);
        }
    }

    #[test]
    fn a_full_disk_is_told_until_the_end() {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut sink = Sink::new(file);
        let errno = |result: io::Result<()>| result.unwrap_err().raw_os_error();
        // The first pieces may be under way before the failure is known.
        let first = (0..10).find_map(|_| sink.write(&vec![1; PIECE]).err()).unwrap();
        assert_eq!(first.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(errno(sink.drain()), Some(libc::ENOSPC));
        assert_eq!(errno(sink.finish().map(drop)), Some(libc::ENOSPC));
    }
}
