//! The transfer thread: frozen pages to the store, while the program goes on.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender};

use super::builder::Builder;
use super::freeze::{Base, Frozen, Part};
use super::pages::{InPlace, Pages};
use super::porter::answer;
use super::ticket::{Check, Info, Level, Progress};
use crate::error::{Error, Kind, Result};
use crate::image::{Compression, FrameWriter, Header};
use crate::proc;
use crate::record::{self, Program, Record};
use crate::store::{DirStore, Store};
use crate::sys::sched;
use crate::sys::pagemap::{self, category};
use crate::transfer::{self, Feed, How};

/// What is read at a time.
const PIECE: usize = 1 << 20;

/// What the transfer thread is told.
#[derive(Debug)]
pub(super) enum Job {
    /// Store a snapshot.
    Shot(Box<Shot>),
    /// Read one back.
    Verify(Check),
    /// Say when all that was asked for before is done.
    Pass(Sender<()>),
    /// Nothing more comes.
    End,
}

/// A snapshot that was frozen.
#[derive(Debug)]
pub(super) struct Shot {
    pub number: u64,
    pub progress: Arc<Progress>,
    pub labels: BTreeMap<String, String>,
    pub state: Vec<u8>,
    pub frozen: Frozen,
    /// Who asked for it from outside.
    pub waiting: Vec<UnixStream>,
}

/// What the session and its transfer thread share.
pub(super) struct Shared {
    pub store: DirStore,
    pub settings: Arc<Builder>,
    pub program: Program,
    pub in_flight: AtomicUsize,
    /// The newest snapshot of this session that is stored.
    pub base: Mutex<Option<Base>>,
    /// How the last one ended that did not end well.
    pub failure: Mutex<Option<Error>>,
}

impl Shared {
    pub fn base(&self) -> Option<Base> {
        self.base.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The callback first: who waits for the level may count on it.
    fn report(&self, progress: &Progress, level: Level) {
        if let Some(call) = &self.settings.callbacks.progress {
            call(&Info { level, ..progress.info() });
        }
        progress.reach(level);
    }
}

/// Works until told to end; what came before that is still done.
pub(super) fn serve(shared: &Shared, jobs: &Receiver<Job>) {
    step_back();
    for job in jobs {
        match job {
            Job::End => return,
            Job::Shot(mut shot) => {
                let (progress, waiting) = (shot.progress.clone(), std::mem::take(&mut shot.waiting));
                let done = guarded(|| deliver(shared, *shot));
                // Before anybody is told: whoever waited for it may take the next one.
                shared.in_flight.fetch_sub(1, Ordering::AcqRel);
                answer(waiting, done.as_ref().map(|()| progress.info()));
                if let Err(e) = done.and_then(|()| guarded(|| settle(shared, &progress))) {
                    *shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(e.clone());
                    progress.fail(e);
                }
            }
            Job::Pass(done) => drop(done),
            Job::Verify(check) => {
                let Some(progress) = check.take() else { continue };
                if let Err(e) = guarded(|| verify(shared, &progress)) {
                    progress.fail(e);
                }
            }
        }
    }
}

/// The program comes first; the threads that we start inherit it. Not to be had is no harm.
fn step_back() {
    if let Ok(mut attributes) = sched::attributes(0) {
        attributes.nice = attributes.nice.max(10);
        let _ = sched::set_attributes(0, &attributes);
    }
}

/// A panic, of a callback perhaps, ends one snapshot and not the session.
fn guarded(work: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::new(Kind::Io, "the transfer thread panicked; the snapshot is lost")))
}

fn verify(shared: &Shared, progress: &Progress) -> Result<()> {
    let info = progress.info();
    match info.frame {
        Some(frame) if info.level < Level::Verified => {
            shared.store.open(&frame)?.verify(&mut |_, _| {})?;
            shared.report(progress, Level::Verified);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn deliver(shared: &Shared, shot: Shot) -> Result<()> {
    let Shot { number, progress, labels, state, frozen, .. } = shot;
    let Frozen { pages, parts, base, method, .. } = frozen;
    progress.check()?;
    let pending = shared.store.begin(&shared.settings.name)?;
    let header = Header::new(base.as_ref().map(|base| base.id));
    let mut writer = pending.writer(&header)?;
    let compression = shared.settings.compression.unwrap_or(Compression::Auto);
    if !state.is_empty() {
        writer.put(record::STATE, 0, &state, compression)?;
    }
    parts.iter().try_for_each(|part| underlay(&mut writer, part))?;
    transfer::run(&mut writer, &How { compression, ..How::default() }, |feed| match &pages {
        Pages::Guarded(held) => store_in_place(feed, &progress, held, &parts),
        pages => parts.iter().try_for_each(|part| store(feed, &progress, pages, part)),
    })?;
    drop(pages);
    let info = progress.info();
    let mut record = Record::new(&shared.settings.name, shared.program.clone());
    record.taken_ns = since_1970(progress.started().elapsed());
    record.taking = record::Taking { method: method.to_owned(), pause_ns: info.pause_ns, bytes: info.bytes };
    record.labels = labels;
    record.state_len = state.len() as u64;
    record.regions = parts.iter().map(described).collect();
    let written = writer.finish(&record.to_bytes()?)?;
    progress.update(|info| info.file_bytes = written.bytes);
    shared.report(&progress, Level::Local);
    progress.check()?;
    let frame = shared.store.commit(pending, &written)?;
    let objects = parts.iter().map(|part| (part.area.id, part.object)).collect();
    let depth = base.map_or(0, |base| base.depth + 1);
    *shared.base.lock().unwrap_or_else(PoisonError::into_inner) = Some(Base { number, frame: frame.clone(), id: header.id, objects, depth });
    let stored_ns = progress.started().elapsed().as_nanos().try_into().unwrap_or(u64::MAX);
    progress.update(|info| (info.frame, info.stored_ns) = (Some(frame), stored_ns));
    Ok(())
}

/// What follows when a snapshot is stored.
fn settle(shared: &Shared, progress: &Progress) -> Result<()> {
    shared.report(progress, Level::Stored);
    if let Some(keep) = shared.settings.keep {
        // The new one is safe: that an old one cannot be removed does not change that.
        let _ = shared.store.retain(&shared.settings.name, keep);
    }
    match shared.settings.verify {
        true => verify(shared, progress),
        false => Ok(()),
    }
}

/// The time of day when something began that has gone on for so long.
fn since_1970(ago: Duration) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(ago).as_nanos().try_into().unwrap_or(u64::MAX)
}

fn described(part: &Part) -> record::Area {
    let area = &part.area;
    let excluded = area.excluded.iter().map(|(start, end)| (*start, end - start)).collect();
    record::Area { name: area.name.clone(), object: part.object, address: area.address, len: area.len, excluded }
}

/// What shows where nothing is stored: what the snapshot below has, or zeros.
fn underlay(writer: &mut FrameWriter, part: &Part) -> Result<()> {
    part.area.wanted(&[(0, part.area.len)]).iter().try_for_each(|&(start, end)| match part.below {
        Some(below) => writer.parent(part.object, start, end - start, below),
        None => writer.zero(part.object, start, end - start, 0),
    })
}

fn store(feed: &mut Feed<'_>, progress: &Progress, pages: &Pages, part: &Part) -> Result<()> {
    let mut buf = vec![0; PIECE];
    for (start, end) in present(pages, part)? {
        let mut at = start;
        while at < end {
            progress.check()?;
            let piece = &mut buf[..(end - at).min(PIECE as u64) as usize];
            let address = part.area.address + at;
            pages.read(address, piece)?;
            pages.release(address, address + piece.len() as u64);
            feed.bytes(part.object, at, piece, 1)?;
            at += piece.len() as u64;
        }
    }
    Ok(())
}

/// Blocks in whatever order they have to be read.
fn store_in_place(feed: &mut Feed<'_>, progress: &Progress, held: &InPlace, parts: &[Part]) -> Result<()> {
    let ends = progress.info().copied_bytes;
    for (address, bytes) in held.ends.each() {
        put(feed, parts, address, bytes)?;
    }
    while let Some((address, bytes)) = held.guarded.next()? {
        progress.check()?;
        let copied = held.guarded.copied();
        progress.update(|info| (info.copied_bytes, info.peak_copied_bytes) = (ends + copied.total, ends + copied.peak));
        put(feed, parts, address, &bytes)?;
    }
    Ok(())
}

/// Bytes of one region, less those that are left out.
fn put(feed: &mut Feed<'_>, parts: &[Part], address: u64, bytes: &[u8]) -> Result<()> {
    let Some(part) = parts.iter().find(|part| (part.area.address..part.area.address + part.area.len).contains(&address)) else { return Ok(()) };
    let base = address - part.area.address;
    for (start, end) in part.area.wanted(&[(base, base + bytes.len() as u64)]) {
        feed.bytes(part.object, start, &bytes[(start - base) as usize..(end - base) as usize], 1)?;
    }
    Ok(())
}

/// What of the stored stretches is there at all: pages of ours that were never touched are zero.
fn present(pages: &Pages, part: &Part) -> Result<Vec<(u64, u64)>> {
    let Pages::Twin(twin) = pages else { return Ok(part.stored.clone()) };
    if !part.area.owned || part.below.is_some() {
        return Ok(part.stored.clone());
    }
    let path = proc::path(twin.pid(), "pagemap");
    // It may not be ours to look at, as its memory is not.
    let Ok(pagemap) = File::open(&path) else { return Ok(part.stored.clone()) };
    let (first, last) = part.area.pages();
    let there = category::PRESENT | category::SWAPPED;
    // A kernel without this call makes us look at every page.
    let Ok(found) = pagemap::scan(&pagemap, first, last, there, there) else { return Ok(part.stored.clone()) };
    let found: Vec<(u64, u64)> = found.iter().map(|run| (run.start - first, run.end - first)).collect();
    Ok(part.area.wanted(&joined(&found)))
}

/// Neighbours as one.
fn joined(runs: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for &(start, end) in runs {
        match all.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => all.push((start, end)),
        }
    }
    all
}
