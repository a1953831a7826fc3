//! How a session is to be: what the program says, else the environment, else what is usual.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::snapshot::Snapshot;
use super::ticket::Info;
use super::Session;
use crate::error::{Error, Kind, Result};
use crate::image::Compression;
use crate::store::{default_dir, FrameRef};

/// How the memory of a snapshot is frozen.
///
/// ```
/// use stillframe::region::{Method, Session};
///
/// # let dir = tempfile::tempdir()?;
/// let session = Session::builder("job").store(dir.path()).method("fork".parse::<Method>()?).open()?;
/// let _grid = session.alloc::<u8>("grid", 1000)?;
/// let info = session.snapshot(&())?.info();
/// println!("by {} ({})", info.method, info.why);
/// # assert_eq!(info.method, "fork");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Copies what was written since the last snapshot, if the kernel can tell and if that is quicker than a fork, by what both
    /// took so far; else forks. Where no fork is to be had it write-protects, and where that cannot be either it copies.
    #[default]
    Auto,
    /// A forked twin of the program holds the pages and runs no code.
    Fork,
    /// The first write to a block copies it aside (userfaultfd). Other memory of the program is left alone. It needs the right
    /// to use userfaultfd for faults of the kernel: root, or `vm.unprivileged_userfaultfd`.
    WriteProtect,
    /// What is stored is copied before `snapshot` returns.
    Copy,
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Method> {
        match text {
            "auto" => Ok(Method::Auto),
            "fork" => Ok(Method::Fork),
            "write-protect" => Ok(Method::WriteProtect),
            "copy" => Ok(Method::Copy),
            _ => Err(Error::new(Kind::Usage, format!("method '{text}' is unknown; use auto, fork, write-protect or copy"))),
        }
    }
}

/// What happens when a snapshot is asked for while one is in flight. None of them waits.
///
/// ```
/// use stillframe::region::{InFlight, Session};
///
/// # let dir = tempfile::tempdir()?;
/// let session = Session::builder("job").store(dir.path()).in_flight(InFlight::Skip).open()?;
/// let (first, second) = (session.snapshot(&1)?, session.snapshot(&2)?);
/// println!("the second one {}", if second.is_skipped() { "was not taken" } else { "found the first one stored" });
/// # assert!(!first.is_skipped());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InFlight {
    /// It is frozen now and written after the other, for at most this many that wait; more are refused.
    Queue(usize),
    /// None is taken, and the ticket says so.
    Skip,
    /// [`Kind::Busy`].
    #[default]
    Refuse,
}

/// What a new session finds in its regions.
///
/// ```
/// use stillframe::region::{Resume, Session};
///
/// # let dir = tempfile::tempdir()?;
/// let open = |resume| Session::builder("job").store(dir.path()).resume(resume).open();
/// for step in [10, 20] {
///     open(Resume::Newest)?.snapshot(&step)?; // stored when the session is dropped
/// }
/// assert_eq!(open(Resume::Newest)?.state::<i32>()?, Some(20));
/// assert_eq!(open(Resume::Version(1))?.state::<i32>()?, Some(10));
/// assert_eq!(open(Resume::Fresh)?.state::<i32>()?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Resume {
    /// The newest intact snapshot of the name, if there is one.
    #[default]
    Newest,
    /// Zeros; snapshots of earlier runs stay in the store.
    Fresh,
    /// The snapshot of this number.
    Version(u64),
    /// A snapshot of another name in the same store: any number of programs can start from it, each with a name of its own,
    /// and the one that wrote it may go on.
    From(FrameRef),
}

/// How other threads of the program are kept from writing while memory is split off.
///
/// ```
/// use stillframe::region::{Quiesce, Session};
///
/// # let dir = tempfile::tempdir()?;
/// let session = Session::builder("job").store(dir.path()).quiesce(Quiesce::Signal).open()?;
/// let _grid = session.alloc::<u8>("grid", 1000)?;
/// session.snapshot(&())?; // other threads may be anywhere
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quiesce {
    /// The program sees to it: no other thread writes to a region while `snapshot` runs.
    #[default]
    SafePoint,
    /// A real-time signal, the highest that the program has no handler for, stops every other thread for the instant. System
    /// calls of theirs that no handler restarts fail with EINTR. Memory is then frozen by a fork, and snapshots hold everything.
    Signal,
}

pub(super) type Veto = Box<dyn Fn() -> std::result::Result<(), String> + Send + Sync>;
pub(super) type Notice = Box<dyn Fn() + Send + Sync>;
pub(super) type Restored = Box<dyn Fn(&Snapshot) + Send + Sync>;
pub(super) type Report = Box<dyn Fn(&Info) + Send + Sync>;

/// Callbacks of the program.
#[derive(Default)]
pub(super) struct Callbacks {
    pub quiesce: Option<Veto>,
    pub resume: Option<Notice>,
    pub restored: Option<Restored>,
    pub progress: Option<Report>,
}

/// Settings of a session to be opened; made by [`Session::builder`].
///
/// What the program does not set is taken from `STILLFRAME_STORE`, `STILLFRAME_METHOD`, `STILLFRAME_COMPRESS`,
/// `STILLFRAME_EVERY`, `STILLFRAME_KEEP`, `STILLFRAME_TIME_LIMIT` (times in seconds), `STILLFRAME_EXIT_ON` and
/// `STILLFRAME_SNAPSHOT_ON`, if they are there.
///
/// ```
/// use std::time::Duration;
/// use stillframe::region::{InFlight, Session};
///
/// # let dir = tempfile::tempdir()?;
/// let session = Session::builder("ocean")
///     .store(dir.path())
///     .every(Duration::from_secs(600))
///     .keep(3)
///     .in_flight(InFlight::Skip)
///     .time_limit(Duration::from_secs(23 * 3600))
///     .exit_on("TERM, USR1") // what the batch system sends before it kills
///     .label("experiment", "a12")
///     .on_progress(|info| println!("{:?} after {} bytes", info.level, info.file_bytes))
///     .open()?;
/// assert!(session.resumed().is_none() && !session.due());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Builder {
    pub(super) name: String,
    pub(super) store: Option<PathBuf>,
    pub(super) method: Option<Method>,
    pub(super) compression: Option<Compression>,
    pub(super) every: Option<Duration>,
    pub(super) keep: Option<usize>,
    pub(super) time_limit: Option<Duration>,
    pub(super) exit_on: Option<String>,
    pub(super) snapshot_on: Option<String>,
    pub(super) in_flight: InFlight,
    pub(super) resume: Resume,
    pub(super) quiesce: Quiesce,
    pub(super) same_addresses: bool,
    pub(super) memory_limit: u64,
    pub(super) block_size: u64,
    pub(super) increments: u32,
    pub(super) verify: bool,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) callbacks: Callbacks,
}

impl Builder {
    pub(super) fn new(name: &str) -> Builder {
        Builder {
            name: name.to_owned(),
            store: None,
            method: None,
            compression: None,
            every: None,
            keep: None,
            time_limit: None,
            exit_on: None,
            snapshot_on: None,
            in_flight: InFlight::default(),
            resume: Resume::default(),
            quiesce: Quiesce::default(),
            same_addresses: false,
            memory_limit: 256 << 20,
            block_size: 128 << 10,
            increments: 15,
            verify: false,
            labels: BTreeMap::new(),
            callbacks: Callbacks::default(),
        }
    }

    /// The directory that holds the snapshots; it is made when it is missing.
    pub fn store(mut self, dir: impl Into<PathBuf>) -> Builder {
        self.store = Some(dir.into());
        self
    }

    /// How memory is frozen.
    pub fn method(mut self, method: Method) -> Builder {
        self.method = Some(method);
        self
    }

    /// How snapshots are compressed. Default: [`Compression::Auto`].
    pub fn compression(mut self, compression: Compression) -> Builder {
        self.compression = Some(compression);
        self
    }

    /// How often a snapshot is due ([`Session::due`]). Default: only when asked for from outside.
    pub fn every(mut self, interval: Duration) -> Builder {
        self.every = Some(interval);
        self
    }

    /// How many snapshots stay in the store, with those that they build upon; older ones go when a new one is safe. Default: all.
    pub fn keep(mut self, count: usize) -> Builder {
        self.keep = Some(count);
        self
    }

    /// The time from now on after which [`Session::should_exit`] says yes: what a batch system grants, less a reserve.
    pub fn time_limit(mut self, limit: Duration) -> Builder {
        self.time_limit = Some(limit);
        self
    }

    /// Signals, by name and separated by commas (`TERM`, `INT`, `HUP`, `USR1`, `USR2`, `XCPU`), after which
    /// [`Session::should_exit`] says yes instead of what they do else. The program must have no handlers of its own for them.
    /// When the session ends, they do again what they did before. Default: none.
    pub fn exit_on(mut self, signals: &str) -> Builder {
        self.exit_on = Some(signals.to_owned());
        self
    }

    /// Signals, as above, each of which makes a snapshot due ([`Session::due`]). Default: none.
    pub fn snapshot_on(mut self, signals: &str) -> Builder {
        self.snapshot_on = Some(signals.to_owned());
        self
    }

    /// What happens when a snapshot is asked for while one is in flight. Default: it is refused.
    pub fn in_flight(mut self, policy: InFlight) -> Builder {
        self.in_flight = policy;
        self
    }

    /// What the session finds in its regions. Default: the newest intact snapshot.
    pub fn resume(mut self, from: Resume) -> Builder {
        self.resume = from;
        self
    }

    /// How other threads are kept from writing meanwhile. Default: the program is at a safe point.
    pub fn quiesce(mut self, how: Quiesce) -> Builder {
        self.quiesce = how;
        self
    }

    /// Regions that come back lie where they lay before, so that pointers inside them hold; if that place is taken, allocating
    /// them fails. Default: anywhere.
    pub fn same_addresses(mut self, same: bool) -> Builder {
        self.same_addresses = same;
        self
    }

    /// The most memory for copies set aside, in bytes; at least one block. Default: 256 MiB. With `write-protect`, a thread
    /// that would exceed it waits until the store has taken some. Memory of copies is kept for the next ones.
    pub fn memory_limit(mut self, bytes: u64) -> Builder {
        self.memory_limit = bytes;
        self
    }

    /// What `write-protect` copies at the first write, in bytes: a power of two from 64 KiB to 256 KiB. Default: 128 KiB.
    pub fn block_size(mut self, bytes: u64) -> Builder {
        self.block_size = bytes;
        self
    }

    /// How many snapshots in a row may hold only what changed, each upon the one before; 0: none. Default: 15.
    pub fn increments(mut self, most: u32) -> Builder {
        self.increments = most;
        self
    }

    /// Whether each snapshot is read back when it is stored. Default: when somebody waits for [`super::Level::Verified`].
    pub fn verify(mut self, always: bool) -> Builder {
        self.verify = always;
        self
    }

    /// Something to be written on every snapshot of the session.
    pub fn label(mut self, key: &str, value: &str) -> Builder {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Called before memory is split off, on the thread that asked for the snapshot: take locks, flush. An error calls it off.
    /// It must not take a snapshot itself, nor add or drop regions.
    pub fn on_quiesce(mut self, call: impl Fn() -> std::result::Result<(), String> + Send + Sync + 'static) -> Builder {
        self.callbacks.quiesce = Some(Box::new(call));
        self
    }

    /// Called after memory is split off, or when that failed, if the quiesce callback has agreed; on the same thread.
    pub fn on_resume(mut self, call: impl Fn() + Send + Sync + 'static) -> Builder {
        self.callbacks.resume = Some(Box::new(call));
        self
    }

    /// Called by `open` when the session goes on from a snapshot: seed generators anew, open connections.
    pub fn on_restored(mut self, call: impl Fn(&Snapshot) + Send + Sync + 'static) -> Builder {
        self.callbacks.restored = Some(Box::new(call));
        self
    }

    /// Called on the transfer thread whenever a snapshot reaches a level.
    pub fn on_progress(mut self, call: impl Fn(&Info) + Send + Sync + 'static) -> Builder {
        self.callbacks.progress = Some(Box::new(call));
        self
    }

    /// Opens the session: takes the name in the store, and loads what it resumes from.
    ///
    /// # Errors
    ///
    /// [`Kind::Held`] if another program has a session of that name, which the message names; [`Kind::Corrupt`] if there are
    /// snapshots and none is intact; [`Kind::Usage`] for settings that make no sense.
    pub fn open(mut self) -> Result<Session> {
        self.fill_from(|key| std::env::var(key).ok().filter(|value| !value.is_empty()))?;
        if !self.block_size.is_power_of_two() || !(64 << 10..=256 << 10).contains(&self.block_size) {
            return Err(Error::new(Kind::Usage, format!("blocks of {} bytes cannot be copied aside; use 65536, 131072 or 262144", self.block_size)));
        }
        if self.keep == Some(0) {
            return Err(Error::new(Kind::Usage, "a session cannot keep 0 snapshots; keep at least 1"));
        }
        let store = self.store.take().map_or_else(default_dir, Ok)?;
        Session::open(Arc::new(self), store)
    }

    /// Takes from the environment what the program left open; the store's variable is looked at where the default is.
    fn fill_from(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
        fn read<T: FromStr>(key: &str, slot: &mut Option<T>, text: Option<String>) -> Result<()> {
            if let (None, Some(text)) = (&slot, text) {
                let value = text.parse().map_err(|_| Error::new(Kind::Usage, format!("{key}={text} is not understood; correct or unset it")))?;
                *slot = Some(value);
            }
            Ok(())
        }
        let seconds = |slot: &mut Option<Duration>, key: &str| {
            let mut number = slot.map(|duration| duration.as_secs());
            let set = number.is_some();
            read(key, &mut number, variable(key))?;
            if !set {
                *slot = number.map(Duration::from_secs);
            }
            Ok::<(), Error>(())
        };
        seconds(&mut self.every, "STILLFRAME_EVERY")?;
        seconds(&mut self.time_limit, "STILLFRAME_TIME_LIMIT")?;
        read("STILLFRAME_EXIT_ON", &mut self.exit_on, variable("STILLFRAME_EXIT_ON"))?;
        read("STILLFRAME_SNAPSHOT_ON", &mut self.snapshot_on, variable("STILLFRAME_SNAPSHOT_ON"))?;
        read("STILLFRAME_METHOD", &mut self.method, variable("STILLFRAME_METHOD"))?;
        read("STILLFRAME_COMPRESS", &mut self.compression, variable("STILLFRAME_COMPRESS"))?;
        read("STILLFRAME_KEEP", &mut self.keep, variable("STILLFRAME_KEEP"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_fills_what_the_program_left_open() {
        let variable = |key: &str| match key {
            "STILLFRAME_METHOD" => Some("copy".to_owned()),
            "STILLFRAME_EVERY" => Some("7".to_owned()),
            "STILLFRAME_KEEP" => Some("3".to_owned()),
            _ => None,
        };
        let mut builder = Builder::new("x").keep(9);
        builder.fill_from(variable).unwrap();
        assert_eq!((builder.method, builder.every, builder.keep), (Some(Method::Copy), Some(Duration::from_secs(7)), Some(9)));
        let wrong = Builder::new("x").fill_from(|key| (key == "STILLFRAME_KEEP").then(|| "many".to_owned()));
        assert!(wrong.unwrap_err().to_string().contains("STILLFRAME_KEEP=many"));
    }
}
