//! The transfer: memory and file contents → zero pages dropped → compressed → written, in bounded memory.
//!
//! The caller's thread feeds, because a process in our hands belongs to the thread that holds it; a few threads encode and one
//! writes. A fixed number of blocks goes round between them, so that memory does not grow with what is fed.

use std::thread;
use std::time::Duration;

use crossbeam_channel::unbounded;

use crate::error::Result;
use crate::image::{Compression, FrameWriter};

mod block;
mod feed;
mod line;
mod source;

use block::Block;
pub use feed::Feed;
use line::Line;

/// How a transfer goes about it.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    /// How blocks are compressed.
    pub compression: Compression,
}

/// What was transferred.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Pages of memory and blocks of files that hold data, in units of 4096 bytes.
    pub pages: u64,
    /// Pages that were looked at and are all zero.
    pub zero_pages: u64,
    /// Bytes that hold data, before compression.
    pub raw_bytes: u64,
    /// Bytes that they take in the frame.
    pub stored_bytes: u64,
    /// Time the caller's thread spent reading.
    pub reading: Duration,
    /// Time spent looking for zeros, compressing and checksumming, summed over all threads.
    pub encoding: Duration,
    /// Time the writing thread spent writing.
    pub writing: Duration,
}

/// Blocks beyond one for each encoding thread: one being filled, one being written, the rest in queues.
const SPARE_BLOCKS: usize = 5;

/// Streams what `produce` feeds into `writer`; returns when all of it is handed to the file (not synced).
///
/// `produce` runs on the caller's thread. If it fails, that ends the others at once and is the error; if encoding or writing
/// fails, feeding fails with that error.
pub fn run<T>(writer: &mut FrameWriter, how: &How, produce: impl FnOnce(&mut Feed<'_>) -> Result<T>) -> Result<(Totals, T)> {
    let workers = thread::available_parallelism().map_or(2, usize::from).clamp(1, 8);
    let line = &Line::new(writer.position());
    thread::scope(|scope| {
        let (fed, fed_out) = unbounded::<Block>();
        let (encoded, encoded_out) = unbounded::<Block>();
        let (free, free_out) = unbounded::<Block>();
        for _ in 0..workers {
            let (fed_out, encoded) = (fed_out.clone(), encoded.clone());
            scope.spawn(move || line.encode_all(&fed_out, &encoded, how.compression));
        }
        // Each queue ends with its last sender, and so does its reader.
        drop((fed_out, encoded));
        let writing = scope.spawn(move || line.write_all(&encoded_out, free, writer));
        let mut feed = Feed::new(line, workers + SPARE_BLOCKS, fed, free_out);
        let produced = produce(&mut feed).and_then(|value| feed.flush().map(|()| value));
        if produced.is_err() {
            line.give_up();
        }
        let reading = feed.end();
        let written = writing.join().unwrap_or_default();
        let value = line.outcome(produced)?;
        Ok((Totals { reading, ..written }, value))
    })
}
