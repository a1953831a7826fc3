//! A store in a directory, local or shared: STORE/NAME/SEQ.frame, committed by rename.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::name::{check_name, number, seq_of};
use super::pending::{lock, sweep, unwritable, Pending};
use super::{FrameRef, Lineage, Store};
use crate::error::{Context, Error, Kind, Result};
use crate::image::{read_header, Chain, FrameId, Written, SUFFIX};

/// Locked while numbers are given out, and while leftovers are told from living writers.
const LOCK: &str = ".lock";
/// The highest number ever removed, so that it is not given out again.
const HIGH_WATER: &str = ".seq";
const HIGH_WATER_NEW: &str = ".seq.new";

/// Frames in a directory.
#[derive(Debug, Clone)]
pub struct DirStore {
    root: PathBuf,
}

/// A frame that [`DirStore::resolve`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Its file.
    pub path: PathBuf,
    /// Its name and number, unless it was given as a path.
    pub frame: Option<FrameRef>,
}

impl DirStore {
    /// The store in `root`, which need not exist before the first frame.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        DirStore { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a frame lies, or would lie.
    pub fn path(&self, frame: &FrameRef) -> PathBuf {
        self.root.join(frame.name()).join(frame.file_name())
    }

    /// Finds what a user calls NAME (its newest frame), NAME@SEQ, or by the path of a file.
    pub fn resolve(&self, text: &str) -> Result<Located> {
        if text.contains('/') || text.ends_with(SUFFIX) {
            let path = PathBuf::from(text);
            path.metadata().at("find frame", &path)?;
            return Ok(Located { path, frame: None });
        }
        let frame = match text.contains('@') {
            true => text.parse()?,
            false => self.newest(text)?,
        };
        let path = self.path(&frame);
        path.metadata().map_err(|e| self.unopened(&frame, e))?;
        Ok(Located { path, frame: Some(frame) })
    }

    /// The store and the frame that a path leads to, if it is one of a store by its place and name.
    pub fn of(path: &Path) -> Option<(DirStore, FrameRef)> {
        let (dir, file) = (path.parent()?, path.file_name()?.to_str()?);
        let frame = FrameRef::new(dir.file_name()?.to_str()?, seq_of(file)?).ok()?;
        Some((DirStore::new(dir.parent()?), frame))
    }

    /// Why a frame cannot be opened: mostly because it is not there.
    fn unopened(&self, frame: &FrameRef, e: io::Error) -> Error {
        let path = self.path(frame);
        match e.kind() {
            ErrorKind::NotFound => self.missing(frame),
            _ => Error::io(format!("cannot open frame {frame} at {}", path.display()), e),
        }
    }

    fn missing(&self, frame: &FrameRef) -> Error {
        let root = self.root.display();
        let what = format!("there is no frame {frame} in the store {root}; list the store to see what is there");
        Error::new(Kind::NotFound, what)
    }

    /// Creates store and name directory as far as they are missing, for their owner alone.
    pub(super) fn make_dir(&self, dir: &Path) -> Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| unwritable(dir, e))?;
        sync_dir(&self.root)?;
        match self.root.parent() {
            Some(parent) if parent != Path::new("") => sync_dir(parent),
            _ => Ok(()),
        }
    }

    /// Names that have a directory.
    fn names(&self) -> Result<Vec<String>> {
        let entries = self.root.read_dir().map_err(|e| self.unlisted(e))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.at("read", &self.root)?.file_name().into_string();
            names.extend(name.ok().filter(|name| check_name(name).is_ok() && self.root.join(name).is_dir()));
        }
        Ok(names)
    }

    fn unlisted(&self, e: io::Error) -> Error {
        match e.kind() {
            ErrorKind::NotFound => {
                let root = self.root.display();
                let what = format!("the store {root} does not exist; take a checkpoint first or name another store");
                Error::new(Kind::NotFound, what)
            }
            _ => Error::io(format!("cannot read the store {}", self.root.display()), e),
        }
    }

    /// The frames of one name, unsorted.
    fn frames(&self, name: &str) -> Result<Vec<FrameRef>> {
        let dir = self.root.join(name);
        let entries = match dir.read_dir() {
            // No directory, no frames: but a missing store is worth saying.
            Err(e) if e.kind() == ErrorKind::NotFound => return self.names().map(|_| Vec::new()),
            entries => entries.at("read", &dir)?,
        };
        let mut frames = Vec::new();
        for entry in entries {
            let file = entry.at("read", &dir)?.file_name();
            if let Some(seq) = file.to_str().and_then(seq_of) {
                frames.push(FrameRef::new(name, seq)?);
            }
        }
        Ok(frames)
    }

    /// The highest number among the frames of `name`.
    fn highest(&self, name: &str) -> Result<u64> {
        Ok(self.frames(name)?.iter().map(FrameRef::seq).max().unwrap_or(0))
    }

    /// Removes those of `frames`, each the parent of the one before, that no other frame builds upon, and says which.
    pub fn prune(&self, frames: &[FrameRef]) -> Result<Vec<FrameRef>> {
        let Some(first) = frames.first() else { return Ok(Vec::new()) };
        let lineage = self.lineage(first.name())?;
        // The first that is needed needs all those below it.
        let free = (1..=frames.len()).take_while(|&count| lineage.removal(&frames[..count]).is_ok()).last().unwrap_or(0);
        self.remove_all(&frames[..free])?;
        Ok(frames[..free].to_vec())
    }

    /// Refuses a frame whose parent is gone; the caller holds the lock, so that it stays there until the frame is.
    fn check_parent(&self, name: &str, parent: FrameId) -> Result<()> {
        let mut frames = self.frames(name)?;
        frames.sort_unstable();
        // Mostly the newest.
        let holds = |frame: &FrameRef| read_header(&self.path(frame)).is_ok_and(|header| header.id == parent);
        match frames.iter().rev().any(holds) {
            true => Ok(()),
            false => Err(Error::refused(format!("frame {parent}, which this one builds upon, is not among those of {name} any more; take a full frame"))),
        }
    }

    /// Deletes frames of one name in this order; the caller holds the lock.
    fn delete(&self, name: &str, frames: &[FrameRef]) -> Result<()> {
        let (dir, highest) = (self.root.join(name), self.highest(name)?);
        // The mark only ever rises: older frames may be removed after newer ones.
        if frames.iter().any(|frame| frame.seq() == highest) && highest > high_water(&dir)? {
            set_high_water(&dir, highest).map_err(|e| unwritable(&dir, e))?;
        }
        for frame in frames {
            let path = self.path(frame);
            fs::remove_file(&path).map_err(|e| match e.kind() {
                ErrorKind::NotFound => self.missing(frame),
                _ => unwritable(&path, e),
            })?;
        }
        sync_dir(&dir)
    }

    /// The number that comes next; the caller holds the lock until it is taken.
    fn next(&self, name: &str) -> Result<FrameRef> {
        let last = self.highest(name)?.max(high_water(&self.root.join(name))?);
        match last.checked_add(1) {
            Some(seq) => FrameRef::new(name, seq),
            None => Err(Error::refused(format!("{name} has no numbers left; use another name"))),
        }
    }
}

impl Store for DirStore {
    fn begin(&self, name: &str) -> Result<Pending> {
        check_name(name)?;
        let dir = self.root.join(name);
        self.make_dir(&dir)?;
        let _lock = lock_dir(&dir)?;
        sweep(&dir)?;
        Pending::create(name, &dir)
    }

    fn commit(&self, pending: Pending, written: &Written) -> Result<FrameRef> {
        let dir = self.root.join(pending.name());
        let gone = |e| if pending_gone(&pending) { vanished(&dir) } else { e };
        // The slow part comes before the lock, so that nobody waits for it.
        pending.sync(written).map_err(gone)?;
        let _lock = lock_dir(&dir).map_err(gone)?;
        let frame = self.next(pending.name()).map_err(gone)?;
        written.parent.map_or(Ok(()), |parent| self.check_parent(pending.name(), parent))?;
        let path = self.path(&frame);
        pending.publish(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => vanished(&dir),
            _ => unwritable(&path, e),
        })?;
        sync_dir(&dir)?;
        Ok(frame)
    }

    fn list(&self, name: Option<&str>) -> Result<Vec<FrameRef>> {
        let names = match name {
            Some(name) => check_name(name).map(|()| vec![name.to_owned()])?,
            None => self.names()?,
        };
        let mut frames = Vec::new();
        for name in names {
            frames.extend(self.frames(&name)?);
        }
        frames.sort_unstable();
        Ok(frames)
    }

    fn open(&self, frame: &FrameRef) -> Result<Chain> {
        Chain::open(&self.path(frame)).map_err(|e| match e.kind() {
            Kind::NotFound => self.missing(frame),
            _ => e,
        })
    }

    fn lineage(&self, name: &str) -> Result<Lineage> {
        let frames = self.list(Some(name))?;
        Ok(Lineage::new(frames.into_iter().map(|frame| {
            let header = read_header(&self.path(&frame));
            (frame, header)
        })))
    }

    fn remove_all(&self, frames: &[FrameRef]) -> Result<()> {
        let mut by_name: BTreeMap<&str, BTreeSet<FrameRef>> = BTreeMap::new();
        for frame in frames {
            self.path(frame).symlink_metadata().map_err(|e| self.unopened(frame, e))?;
            by_name.entry(frame.name()).or_default().insert(frame.clone());
        }
        // In the order of names, so that two of us do not wait for each other.
        let locks = by_name.keys().map(|name| lock_dir(&self.root.join(name))).collect::<Result<Vec<_>>>()?;
        let mut plans = Vec::new();
        for (name, frames) in by_name {
            let frames: Vec<FrameRef> = frames.into_iter().collect();
            plans.push((name, self.lineage(name)?.removal(&frames)?));
        }
        plans.iter().try_for_each(|(name, frames)| self.delete(name, frames))?;
        drop(locks);
        Ok(())
    }
}

pub(super) fn lock_dir(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    lock(file.map_err(|e| unwritable(dir, e))?, FlockArg::LockExclusive).at("lock", &path)
}

/// The lock of a directory that has one: of a store, that is.
pub(super) fn lock_store(dir: &Path) -> Result<Option<Flock<File>>> {
    match dir.join(LOCK).symlink_metadata() {
        Ok(_) => lock_dir(dir).map(Some),
        Err(_) => Ok(None),
    }
}

/// Makes what was renamed, created or removed in `dir` survive a loss of power.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    match File::open(dir).and_then(|file| file.sync_all()) {
        // Some file systems know no sync of directories, and need none.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        synced => synced.at("sync", dir),
    }
}

fn high_water(dir: &Path) -> Result<u64> {
    let path = dir.join(HIGH_WATER);
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
        text => text.at("read", &path)?,
    };
    number(text.trim_end()).ok_or_else(|| {
        let what = format!("{} does not hold a number; write the highest number ever used into it", path.display());
        Error::corrupt(what)
    })
}

fn set_high_water(dir: &Path, seq: u64) -> io::Result<()> {
    let new = dir.join(HIGH_WATER_NEW);
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    writeln!(file, "{seq}")?;
    file.sync_all()?;
    fs::rename(&new, dir.join(HIGH_WATER))
}

/// Whether somebody removed the file under the writer's hands.
fn pending_gone(pending: &Pending) -> bool {
    pending.path().symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound)
}

fn vanished(dir: &Path) -> Error {
    let what = format!("{} was removed while a frame was written to it", dir.display());
    Error::new(Kind::NotFound, format!("{what}; the frame is lost, take it again"))
}
