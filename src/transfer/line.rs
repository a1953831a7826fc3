//! What the threads of a transfer share, and what the encoding and the writing thread do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::adapt::Encoder;
use super::block::Block;
use super::throttle::Throttle;
use super::Totals;
use crate::error::{Error, Kind, Result};
use crate::image::FrameWriter;
use crate::sys::PAGE;

/// How long a thread that waits goes without a look at what else happened.
pub const TICK: Duration = Duration::from_millis(50);

/// The state of one transfer.
#[derive(Default)]
pub struct Line {
    /// The first failure behind the feeder's back.
    failure: Mutex<Option<Error>>,
    /// The feeder was told of it.
    told: AtomicBool,
    /// Nothing more is to be done, after a failure or on the caller's wish.
    over: AtomicBool,
    /// Length of the frame so far.
    written: AtomicU64,
}

/// What the writing thread is sent.
pub enum Parcel {
    /// A block to write.
    Block(Block),
    /// The wish to be told when all is in the file.
    Drain(Sender<()>),
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

    /// Ends all threads, for this reason unless there is one.
    pub fn fail(&self, error: Error) {
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
        self.told.store(true, Ordering::Relaxed);
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Error::new(error.kind(), error.to_string()),
            None => Error::new(Kind::Io, "the transfer was given up"),
        }
    }

    /// The end of it all. What the feeder says is its own failure, unless it was told of another.
    pub fn outcome<T>(&self, produced: Result<T>) -> Result<T> {
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(failure) if produced.is_ok() || self.told.load(Ordering::Relaxed) => Err(failure),
            _ => produced,
        }
    }

    /// Encodes blocks until there are no more.
    pub fn encode_all(&self, fed: &Receiver<Block>, encoded: &Sender<Parcel>, encoder: &Encoder) {
        let _alarm = Alarm(self);
        for mut block in fed {
            if self.is_over() {
                return;
            }
            encoder.encode(&mut block);
            if encoded.send(Parcel::Block(block)).is_err() {
                return;
            }
        }
    }

    /// Writes blocks until there are no more, and gives them back.
    pub fn write_all(&self, encoded: &Receiver<Parcel>, free: &Sender<Block>, encoder: &Encoder, rate: Option<u64>, writer: &mut FrameWriter) -> Totals {
        let _alarm = Alarm(self);
        let mut totals = Totals::default();
        let mut throttle = rate.map(|rate| Throttle::new(rate, Instant::now()));
        rate.iter().for_each(|&rate| writer.set_piece(Throttle::portion(rate)));
        for parcel in encoded {
            let done = match parcel {
                _ if self.is_over() => break,
                // Who wished to know may have given up.
                Parcel::Drain(done) => writer.drain().map(|()| done.send(()).unwrap_or_default()),
                Parcel::Block(block) => {
                    self.hold_back(&block, throttle.as_mut());
                    self.write(block, free, writer, &mut totals)
                }
            };
            encoder.note_store(writer.speed());
            if let Err(error) = done {
                self.fail(error);
                break;
            }
        }
        totals
    }

    fn hold_back(&self, block: &Block, throttle: Option<&mut Throttle>) {
        if let (Some(throttle), Some((head, _))) = (throttle, block.encoded()) {
            let now = Instant::now();
            let until = now + throttle.take(head.file_len() as u64, now);
            while !self.is_over() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                thread::sleep(left.min(TICK));
            }
        }
    }

    fn write(&self, mut block: Block, free: &Sender<Block>, writer: &mut FrameWriter, totals: &mut Totals) -> Result<()> {
        let begun = Instant::now();
        if let Some((head, stored)) = block.encoded() {
            writer.append_parts(head, stored, &block.runs)?;
            totals.pages += (head.raw_len() as u64).div_ceil(PAGE);
            totals.raw_bytes += head.raw_len() as u64;
            totals.stored_bytes += head.file_len() as u64;
        }
        for zero in &block.zeros {
            writer.zero(zero.object, zero.offset, zero.len, zero.generation)?;
            totals.zero_pages += zero.len.div_ceil(PAGE);
        }
        self.written.store(writer.position(), Ordering::Relaxed);
        totals.writing += begun.elapsed();
        totals.reading += block.reading;
        totals.encoding += block.encoding;
        block.clear();
        // Nobody waits for it when all is fed.
        let _ = free.send(block);
        Ok(())
    }
}
