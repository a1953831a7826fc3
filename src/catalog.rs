//! What is in a store, frame by frame, without looking at the content of blocks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use crate::error::{Kind, Result};
use crate::image::Chain;
use crate::manifest::Manifest;
use crate::store::{DirStore, FrameRef, Store};

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
    /// What it holds; none if it cannot be read.
    pub content: Option<Content>,
    /// Why it cannot be read.
    pub problem: Option<String>,
}

/// What a readable frame holds.
#[derive(Debug, Serialize)]
pub struct Content {
    /// How long the tree stood still, in nanoseconds.
    pub pause_ns: u64,
    /// Processes.
    pub processes: usize,
    /// Pages of 4096 bytes that hold data.
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

/// The frames of `name`, or all, by name: the newest of each last, the name with the newest of all last. An unreadable frame
/// is an entry like any other.
pub fn list(store: &DirStore, name: Option<&str>) -> Result<Vec<Entry>> {
    let frames = store.list(name)?;
    // A frame that somebody removes meanwhile is not in the store any more.
    let mut entries: Vec<Entry> = frames.into_iter().filter_map(|frame| entry(store, frame)).collect();
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
    let entry = Entry { frame, bytes: meta.len(), taken_ns: written.as_nanos().try_into().unwrap_or(u64::MAX), content: None, problem: None, path };
    match open(&entry.path) {
        Ok((_, manifest)) => Some(Entry { taken_ns: manifest.taken_ns, content: Some(content(&manifest)), ..entry }),
        Err(e) if e.kind() == Kind::NotFound => None,
        Err(e) => Some(Entry { problem: Some(e.to_string()), ..entry }),
    }
}

fn content(manifest: &Manifest) -> Content {
    let taking = &manifest.taking;
    Content { pause_ns: taking.pause_ns, processes: manifest.processes.len(), pages: taking.pages, zero_pages: taking.zero_pages }
}
