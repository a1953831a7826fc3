//! What the threads of a transfer share, and what the encoding and the writing thread do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::block::Block;
use super::Totals;
use crate::error::{Error, Kind, Result};
use crate::image::{Compression, FrameWriter};
use crate::sys::PAGE;

/// The state of one transfer.
#[derive(Default)]
pub struct Line {
    /// The first failure of an encoding or the writing thread.
    failure: Mutex<Option<Error>>,
    /// Nothing more is to be done, after a failure or on the caller's wish.
    over: AtomicBool,
    /// Length of the frame so far.
    written: AtomicU64,
    /// Nanoseconds that the encoding threads worked.
    encoding: AtomicU64,
}

/// A thread that panics must not leave the others waiting for it.
struct Alarm<'a>(&'a Line);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail(Error::new(Kind::Io, "a thread of the transfer broke down; this is a defect of stillframe"));
        }
    }
}

impl Line {
    /// For a frame that already has `written` bytes.
    pub fn new(written: u64) -> Self {
        Line { written: AtomicU64::new(written), ..Line::default() }
    }

    /// Ends all threads at the next block.
    pub fn give_up(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.give_up();
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Length of the frame so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// What a feeder is told when the others have ended: the failure, of which the original is kept for the outcome.
    pub fn echo(&self) -> Error {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Error::new(error.kind(), error.to_string()),
            None => Error::new(Kind::Io, "the transfer was given up"),
        }
    }

    /// The end of it all: a failure behind the feeder's back is the cause, and what the feeder says then only an echo.
    pub fn outcome<T>(&self, produced: Result<T>) -> Result<T> {
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(failure) => Err(failure),
            None => produced,
        }
    }

    /// Encodes blocks until there are no more.
    pub fn encode_all(&self, fed: &Receiver<Block>, encoded: &Sender<Block>, compression: Compression) {
        let _alarm = Alarm(self);
        for mut block in fed {
            if self.is_over() {
                return;
            }
            let begun = Instant::now();
            if let Err(error) = block.encode(compression) {
                return self.fail(error);
            }
            self.encoding.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
            if encoded.send(block).is_err() {
                return;
            }
        }
    }

    /// Writes blocks until there are no more, and gives them back.
    pub fn write_all(&self, encoded: &Receiver<Block>, free: Sender<Block>, writer: &mut FrameWriter) -> Totals {
        let _alarm = Alarm(self);
        let mut totals = Totals::default();
        for mut block in encoded {
            if self.is_over() {
                break;
            }
            let begun = Instant::now();
            if let Err(error) = write(&block, writer, &mut totals) {
                self.fail(error);
                break;
            }
            totals.writing += begun.elapsed();
            self.written.store(writer.position(), Ordering::Relaxed);
            block.clear();
            // Nobody waits for it when all is fed.
            let _ = free.send(block);
        }
        totals.encoding = Duration::from_nanos(self.encoding.load(Ordering::Relaxed));
        totals
    }
}

fn write(block: &Block, writer: &mut FrameWriter, totals: &mut Totals) -> Result<()> {
    if let Some(encoded) = &block.encoded {
        writer.append(encoded, &block.runs)?;
        totals.pages += (encoded.raw_len() as u64).div_ceil(PAGE);
        totals.raw_bytes += encoded.raw_len() as u64;
        totals.stored_bytes += encoded.file_len() as u64;
    }
    for zero in &block.zeros {
        writer.zero(zero.object, zero.offset, zero.len, zero.generation)?;
        totals.zero_pages += zero.len.div_ceil(PAGE);
    }
    Ok(())
}
