//! The transfer: memory and file contents → zero pages dropped → compressed → written, in bounded memory.
//!
//! The caller's thread feeds, because a process in our hands belongs to the thread that holds it; a few threads encode and one
//! writes. A fixed number of blocks of 1 MiB goes round between them, so that memory does not grow with what is fed: blocks,
//! what they are compressed into, the compressors up to level 3 and the buffers of the file stay below [`MEMORY`]. Higher levels
//! of zstd take up to 16 MiB more for each thread.

use std::thread;
use std::time::Duration;

use crossbeam_channel::unbounded;

use crate::error::Result;
use crate::image::{Compression, FrameWriter, BLOCK_MAX};

mod adapt;
mod block;
mod feed;
mod line;
mod progress;
mod source;
mod throttle;

use adapt::Encoder;
use block::Block;
pub use feed::Feed;
use line::{Line, Parcel};
pub use progress::{Progress, Status};
use throttle::Throttle;

/// Bytes of memory that a transfer takes at most, with levels of zstd up to 3.
pub const MEMORY: u64 = 64 << 20;

/// How a transfer goes about it.
#[derive(Debug, Clone, Default)]
pub struct How {
    /// How blocks are compressed.
    pub compression: Compression,
    /// Bytes a second, at least 1, that are written at most. What was saved up in idle moments is written at once, up to a tenth of a
    /// second's worth. The index and the manifest, which come at the end, are not held back.
    pub rate_limit: Option<u64>,
    /// Is told how far it is.
    pub progress: Option<Progress>,
}

/// What was transferred.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize)]
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
    #[serde(rename = "reading_ns", serialize_with = "as_nanos")]
    pub reading: Duration,
    /// Time spent looking for zeros, compressing and checksumming, summed over all threads.
    #[serde(rename = "encoding_ns", serialize_with = "as_nanos")]
    pub encoding: Duration,
    /// Time the writing thread spent writing, waits for the store included.
    #[serde(rename = "writing_ns", serialize_with = "as_nanos")]
    pub writing: Duration,
}

fn as_nanos<S: serde::Serializer>(duration: &Duration, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_nanos().try_into().unwrap_or(u64::MAX))
}

/// Blocks beyond one for each encoding thread: one being filled, one being written, the rest in queues.
const SPARE_BLOCKS: usize = 5;
/// Smaller blocks cost more than a slow store is worth.
const SMALLEST_BLOCK: usize = 64 << 10;

/// Streams what `produce` feeds into `writer`; returns when all of it is handed to the file (not synced).
///
/// `produce` runs on the caller's thread. If it fails, that ends the others at once and is the error; if encoding or writing
/// fails, feeding fails with that error.
pub fn run<T>(writer: &mut FrameWriter, how: &How, produce: impl FnOnce(&mut Feed<'_>) -> Result<T>) -> Result<(Totals, T)> {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    let workers = cores.clamp(1, 8);
    let (line, encoder) = (&Line::new(writer.position()), &Encoder::new(how.compression, cores, how.rate_limit));
    let block_size = how.rate_limit.map_or(BLOCK_MAX, |rate| Throttle::portion(rate).clamp(SMALLEST_BLOCK, BLOCK_MAX));
    thread::scope(|scope| {
        let (fed, fed_out) = unbounded::<Block>();
        let (encoded, encoded_out) = unbounded::<Parcel>();
        let (free, free_out) = unbounded::<Block>();
        for _ in 0..workers {
            let (fed_out, encoded) = (fed_out.clone(), encoded.clone());
            scope.spawn(move || line.encode_all(&fed_out, &encoded, encoder));
        }
        // Each queue ends with its last sender, and so does its reader.
        drop(fed_out);
        let writing = scope.spawn(move || line.write_all(&encoded_out, &free, encoder, how.rate_limit, writer));
        let mut feed = Feed::new(line, how, (workers + SPARE_BLOCKS, block_size), (fed, encoded, free_out));
        let produced = produce(&mut feed).and_then(|value| feed.settle().map(|()| value));
        drop(feed);
        if produced.is_err() {
            line.give_up();
        }
        let totals = writing.join().unwrap_or_default();
        line.outcome(produced).map(|value| (totals, value))
    })
}
