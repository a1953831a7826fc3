//! Taking a frame: survey → arm → rounds → freeze → capture → copy or split → thaw → transfer → commit.
//!
//! Whatever fails, the target runs on as if we had never come; nothing is visible in the store before the commit.

use std::collections::HashMap;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::hooks::Hooks;
use crate::image::Compression;
use crate::proc::{self, stat, Pid};
use crate::resource::fd::CaptureOptions;
use crate::resource::memory::Survey;
use crate::store::{FrameRef, Store};
use crate::tracee::seize::tree;
use crate::transfer::{Progress, Totals};

mod aside;
mod calls;
mod capture;
mod family;
mod instant;
mod outside;
mod pathless;
mod precopy;
mod session;
mod shared;
mod watch;

pub use session::Session;

/// How memory is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Write-protect tracking where the kernel has it; a forked twin where pages are written faster than they are stored.
    #[default]
    Auto,
    /// Write-protect tracking, and nothing else.
    Track,
    /// A forked twin holds the pages.
    Fork,
}

/// What becomes of the target when its frame is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Then {
    /// It runs on.
    #[default]
    Run,
    /// It stays stopped (SIGSTOP).
    Stop,
    /// It ends at the very instant of the frame.
    Kill,
}

/// Which regular files that the target may write are kept with the frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SaveFiles {
    /// None.
    #[default]
    None,
    /// All.
    All,
    /// Those whose path matches a pattern with `*` and `?`.
    Matching(String),
}

/// How to take a frame.
#[derive(Debug, Clone)]
pub struct Options {
    /// The frame's name; default: the command name of the process.
    pub name: Option<String>,
    /// How memory is frozen.
    pub method: Method,
    /// What becomes of the target.
    pub then: Then,
    /// How pages are compressed.
    pub compression: Compression,
    /// Bytes a second that are written to the store at most.
    pub rate_limit: Option<u64>,
    /// Is told how far the transfer is; may end it, and then the target runs on and the store is as before.
    pub progress: Option<Progress>,
    /// Store the program and all mapped files, for hosts that lack them.
    pub self_contained: bool,
    /// Keep the content of files open for writing.
    pub save_files: SaveFiles,
    /// What may lead outside the tree.
    pub descriptors: CaptureOptions,
    /// Commands run at events.
    pub hooks: Hooks,
    /// Most bytes of pages that are copied into our own memory.
    pub memory_limit: u64,
}

/// Where nobody says how much memory may be used.
pub const MEMORY_LIMIT: u64 = 256 << 20;

impl Default for Options {
    fn default() -> Self {
        Options {
            name: None,
            method: Method::default(),
            then: Then::default(),
            compression: Compression::default(),
            rate_limit: None,
            progress: None,
            self_contained: false,
            save_files: SaveFiles::default(),
            descriptors: CaptureOptions::default(),
            hooks: Hooks::default(),
            memory_limit: MEMORY_LIMIT,
        }
    }
}

/// A frame taken.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// Its reference in the store.
    #[serde(serialize_with = "as_text")]
    pub frame: FrameRef,
    /// The frame that it builds upon, if it holds only what was written since.
    #[serde(serialize_with = "as_optional_text")]
    pub parent: Option<FrameRef>,
    /// Processes in it.
    pub processes: usize,
    /// How memory was frozen: `track`, `fork`, or `track+fork`.
    pub method: &'static str,
    /// Rounds of copying before the pause.
    pub rounds: u32,
    /// Pages copied in the pause.
    pub copied: u64,
    /// Stops before that one, in nanoseconds altogether: to begin to watch the tree's memory, and to look at it once more where it
    /// writes much.
    pub arming_ns: u64,
    /// How long the tree stood still, in nanoseconds.
    pub pause_ns: u64,
    /// From the start to the frame safe on storage, in nanoseconds.
    pub durable_ns: u64,
    /// From the instant of the frame to the frame safe on storage, in nanoseconds.
    pub lag_ns: u64,
    /// Pages of 4096 bytes that hold data.
    pub pages: u64,
    /// Pages that are zero and take no room.
    pub zero_pages: u64,
    /// Length of the frame's file in bytes.
    pub bytes: u64,
    /// What was transferred, and how long each stage worked at it.
    pub transfer: Totals,
    /// Things worth a line.
    pub notes: Vec<String>,
}

fn as_text<S: serde::Serializer>(frame: &FrameRef, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(frame)
}

fn as_optional_text<S: serde::Serializer>(frame: &Option<FrameRef>, serializer: S) -> Result<S::Ok, S::Error> {
    match frame {
        Some(frame) => serializer.collect_str(frame),
        None => serializer.serialize_none(),
    }
}

/// Takes a frame of process `pid` and all its descendants into `store`.
pub fn checkpoint(pid: Pid, store: &dyn Store, options: &Options) -> Result<Report> {
    Session::new(pid, options.clone())?.frame(store, false)
}

fn default_name(pid: Pid) -> Result<String> {
    let comm = proc::text(&proc::path(pid, "comm")).map_err(|_| no_such(pid))?;
    Ok(comm.trim().chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect::<String>().trim_start_matches('.').to_owned())
}

fn no_such(pid: Pid) -> Error {
    Error::new(Kind::NotFound, format!("pid {pid}: no such process"))
}

/// Before the pause: whether there is anything to freeze, and what takes long to read.
fn survey(root: Pid, surveys: &mut HashMap<Pid, Survey>) -> Result<()> {
    let stat = stat::read(root).map_err(|_| no_such(root))?;
    if stat.is_kernel_thread() {
        return Err(Error::refused(format!("pid {root} is a thread of the kernel; only user programs can be checkpointed")));
    }
    if stat.is_zombie() {
        return Err(Error::refused(format!("pid {root} is a zombie: it has exited and waits for its parent {} to notice", stat.ppid)));
    }
    let leader = crate::proc::status::Status::read(root)?.number("Tgid")?;
    if leader != i64::from(root) {
        return Err(Error::refused(format!("{root} is a thread of process {leader}; checkpoint that")));
    }
    if root == std::process::id() as Pid || tree(root)?.contains(&(std::process::id() as Pid)) {
        return Err(Error::refused(format!("pid {root} is this very command or an ancestor of it; run stillframe from outside the tree")));
    }
    // What cannot be read now is refused, or is gone, at the freeze.
    let pids = tree(root)?;
    surveys.retain(|pid, _| pids.contains(pid));
    for pid in pids {
        let _ = surveys.entry(pid).or_default().renew(pid);
    }
    Ok(())
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}
