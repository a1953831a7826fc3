//! What is in a store, frame by frame, without looking at the content of blocks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use crate::error::{Kind, Result};
use crate::image::{Chain, FrameReader};
use crate::manifest::Manifest;
use crate::record::Record;
use crate::store::{DirStore, FrameRef, Lineage, Parent, Store};

/// One frame of a store.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its reference.
    pub frame: FrameRef,
    /// Its file.
    pub path: PathBuf,
    /// Length of the file.
    pub bytes: u64,
    /// When it was taken, in nanoseconds since 1970; of an unreadable frame, when its file was written.
    pub taken_ns: u64,
    /// What it builds upon; none if its header cannot be read.
    pub chain: Option<Descent>,
    /// What it holds; none if it cannot be read.
    pub content: Option<Content>,
    /// Why it cannot be read.
    pub problem: Option<String>,
}

/// What a frame builds upon.
#[derive(Debug, Serialize)]
pub struct Descent {
    /// Whether it holds only what is new since another frame.
    pub increment: bool,
    /// That other frame; none if it is not there, or not needed.
    pub parent: Option<FrameRef>,
    /// Frames in the chain, itself included.
    pub frames: usize,
    /// Length of all their files.
    pub bytes: u64,
}

/// What a readable frame holds.
#[derive(Debug, Serialize)]
pub struct Content {
    /// How long the tree stood still, in nanoseconds.
    pub pause_ns: u64,
    /// Processes; none in a frame of a linked program's regions.
    pub processes: usize,
    /// Pages of 4096 bytes that hold data; of regions, all that they cover.
    pub pages: u64,
    /// Pages that are zero and take no room.
    pub zero_pages: u64,
}

/// Opens a frame file and those it builds upon, and checks their headers, indexes and manifests.
pub fn open(path: &Path) -> Result<(Chain, Manifest)> {
    let chain = Chain::open(path)?;
    let manifest = Manifest::from_bytes(chain.manifest()).map_err(|e| e.context(format_args!("frame {}", path.display())))?;
    Ok((chain, manifest))
}

/// The same for a frame of whichever kind.
pub fn chain(path: &Path) -> Result<Chain> {
    match record(path)? {
        Some(_) => Chain::open(path),
        None => open(path).map(|(chain, _)| chain),
    }
}

/// The frames of `name`, or all, by name: the newest of each last, the name with the newest of all last. An unreadable frame
/// is an entry like any other.
pub fn list(store: &DirStore, name: Option<&str>) -> Result<Vec<Entry>> {
    let frames = store.list(name)?;
    let mut entries = Vec::new();
    for frames in frames.chunk_by(|a, b| a.name() == b.name()) {
        // A frame that somebody removes meanwhile is not in the store any more.
        let first = entries.len();
        entries.extend(frames.iter().filter_map(|frame| entry(store, frame.clone())));
        descend(&mut entries[first..], &store.lineage(frames[0].name())?);
    }
    let mut newest: HashMap<String, u64> = HashMap::new();
    for entry in &entries {
        let time = newest.entry(entry.frame.name().to_owned()).or_default();
        *time = entry.taken_ns.max(*time);
    }
    // Within a name the numbers say what is newer: the time of an unreadable frame is anybody's guess.
    entries.sort_by_key(|entry| newest[entry.frame.name()]);
    Ok(entries)
}

fn entry(store: &DirStore, frame: FrameRef) -> Option<Entry> {
    let path = store.path(&frame);
    let meta = path.metadata().ok()?;
    let written = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let entry = Entry { frame, bytes: meta.len(), taken_ns: written.as_nanos().try_into().unwrap_or(u64::MAX), chain: None, content: None, problem: None, path };
    match alone(&entry.path) {
        Ok(manifest) => Some(Entry { taken_ns: manifest.taken_ns, content: Some(content(&manifest)), ..entry }),
        Err(e) if e.kind() == Kind::NotFound => None,
        Err(e) => match record(&entry.path) {
            Ok(Some(record)) => Some(Entry { taken_ns: record.taken_ns, content: Some(content_of_regions(&record)), ..entry }),
            _ => Some(Entry { problem: Some(e.to_string()), ..entry }),
        },
    }
}

/// The manifest of a frame whose own file is in order.
fn alone(path: &Path) -> Result<Manifest> {
    let reader = FrameReader::open(path)?;
    Manifest::from_bytes(reader.manifest()).map_err(|e| e.context(format_args!("frame {}", path.display())))
}

/// Says of the frames of one name what each builds upon, and what is wrong with that.
fn descend(entries: &mut [Entry], lineage: &Lineage) {
    let own: HashMap<FrameRef, (u64, bool)> = entries.iter().map(|entry| (entry.frame.clone(), (entry.bytes, entry.problem.is_some()))).collect();
    for entry in entries {
        let Some(parent) = lineage.parent(&entry.frame) else { continue };
        let chain = lineage.chain(&entry.frame);
        let bytes = chain.iter().filter_map(|link| own.get(link)).map(|(bytes, _)| bytes).sum();
        let lost = chain.last().and_then(|last| match lineage.parent(last) {
            Some(Parent::Missing(id)) => Some(format!("frame {id}, which {last} builds upon, is not in the store")),
            _ => None,
        });
        let damaged = chain.iter().find(|link| own.get(link).is_some_and(|(_, damaged)| *damaged));
        let problem = lost.or(damaged.map(|link| format!("it builds upon {link}, which is not readable")));
        entry.problem = entry.problem.take().or(problem);
        let increment = parent != Parent::None;
        let parent = if let Parent::Frame(parent) = parent { Some(parent) } else { None };
        entry.chain = Some(Descent { increment, parent, frames: chain.len(), bytes });
    }
}

/// What a frame of a linked program's regions knows besides their bytes; none if it is one of processes.
pub fn record(path: &Path) -> Result<Option<Record>> {
    Record::read(FrameReader::open(path)?.manifest()).map_err(|e| e.context(format_args!("frame {}", path.display())))
}

fn content_of_regions(record: &Record) -> Content {
    Content { pause_ns: record.taking.pause_ns, processes: 0, pages: record.taking.bytes.div_ceil(4096), zero_pages: 0 }
}

fn content(manifest: &Manifest) -> Content {
    let taking = &manifest.taking;
    Content { pause_ns: taking.pause_ns, processes: manifest.processes.len(), pages: taking.pages, zero_pages: taking.zero_pages }
}
