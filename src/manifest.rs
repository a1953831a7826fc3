//! The manifest: everything a frame knows besides bytes of memory, as JSON that any tool can read.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::proc::Pid;
use crate::record::Record;
use crate::resource::fd::Descriptors;
use crate::resource::files::{FileEntry, FileId};
use crate::resource::memory::AddressSpace;
use crate::resource::tree::Node;
use crate::resource::{limits, process, signals, threads, timers};

/// Everything but the pages.
#[derive(Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// The name the frame was taken under.
    pub name: String,
    /// When, in nanoseconds since 1970.
    pub taken_ns: u64,
    /// How it went.
    pub taking: Taking,
    /// Where.
    pub host: Host,
    /// The tree, root first, parents before children.
    pub processes: Vec<Process>,
    /// Address spaces, by the processes' `space`.
    pub spaces: Vec<AddressSpace>,
    /// Descriptors, by the processes' `table`.
    pub descriptors: Descriptors,
    /// Files that mappings and descriptors refer to.
    pub files: Vec<FileEntry>,
}

/// How a frame was taken.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Taking {
    /// `track`, `fork` or `track+fork`; of regions, the library's method.
    pub method: String,
    /// How long the tree stood still, in nanoseconds.
    pub pause_ns: u64,
    /// Pages of 4096 bytes that hold data.
    pub pages: u64,
    /// Pages that were looked at and are zero.
    pub zero_pages: u64,
}

/// One process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its ids, in the innermost pid namespace.
    pub node: Node,
    /// The signal its parent gets when it exits.
    pub exit_signal: i32,
    /// Its command name.
    pub name: String,
    /// Running, stopped or dead.
    pub life: Life,
    /// All else; nothing is left of a zombie.
    pub body: Option<Body>,
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// It runs or sleeps.
    Running,
    /// Job control stopped it by this signal.
    Stopped(i32),
    /// It is dead, with this wait status, and its parent has not waited for it.
    Zombie(i32),
}

/// What a living process has.
#[derive(Debug, Serialize, Deserialize)]
pub struct Body {
    /// Index into the address spaces.
    pub space: usize,
    /// Index into the descriptor tables.
    pub table: usize,
    /// What it shares with its parent.
    pub shares: Shares,
    /// The program file; none if the link leads nowhere.
    pub exe: Option<FileId>,
    /// Working directory.
    pub cwd: FileId,
    /// Root directory.
    pub root: FileId,
    /// Signal handlers and pending signals.
    pub signals: signals::State,
    /// Timers.
    pub timers: timers::State,
    /// Resource limits.
    pub limits: limits::State,
    /// Attributes of the process as a whole.
    pub attributes: process::State,
    /// Its threads, leader first.
    pub threads: Vec<Thread>,
}

/// Kernel objects that a process shares with its parent (clone without fork's copies).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// CLONE_VM.
    pub memory: bool,
    /// CLONE_FILES.
    pub files: bool,
    /// CLONE_FS.
    pub fs: bool,
    /// CLONE_SIGHAND.
    pub handlers: bool,
}

impl Shares {
    /// The CLONE_* flags that make a child share so.
    pub fn clone_flags(self) -> u64 {
        let flags = [(self.memory, libc::CLONE_VM), (self.files, libc::CLONE_FILES), (self.fs, libc::CLONE_FS), (self.handlers, libc::CLONE_SIGHAND)];
        flags.iter().filter(|(shared, _)| *shared).fold(0, |all, (_, flag)| all | *flag as u64)
    }
}

/// One thread.
#[derive(Debug, Serialize, Deserialize)]
pub struct Thread {
    /// Its id, in the innermost pid namespace.
    pub tid: Pid,
    /// Registers and all else.
    pub state: threads::State,
}

impl Manifest {
    /// As the bytes that a frame stores.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::corrupt(format!("the manifest cannot be written: {e}")))
    }

    /// From the bytes that a frame stores.
    pub fn from_bytes(bytes: &[u8]) -> Result<Manifest> {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| match Record::read(bytes) {
            Ok(Some(record)) => Error::new(Kind::Usage, format!("it holds regions of a linked program ({}), not processes; start that program, and it goes on from its newest snapshot", record.program.command)),
            _ => Error::corrupt(format!("the frame's manifest makes no sense: {e}; it was written by another version of stillframe")),
        })?;
        manifest.check_indices()?;
        Ok(manifest)
    }

    /// Every index leads somewhere, so that a restore need not look twice.
    fn check_indices(&self) -> Result<()> {
        let mut bodies = self.processes.iter().filter_map(|process| process.body.as_ref());
        let sound = bodies.all(|body| {
            let files = [Some(body.cwd), Some(body.root), body.exe];
            body.space < self.spaces.len() && body.table < self.descriptors.tables.len() && !body.threads.is_empty() && files.into_iter().flatten().all(|id| id < self.files.len())
        });
        let rooted = self.processes.first().is_some_and(|root| root.body.is_some());
        if sound && rooted {
            return Ok(());
        }
        Err(Error::corrupt("the frame's manifest refers to something that it does not hold"))
    }
}
