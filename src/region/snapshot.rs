//! Reading snapshots: by the program that goes on from one, or by another while the writer runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use bytemuck::Pod;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};
use crate::image::{Block, BlockId, Chain, Piece, Source};
use crate::record::{self, Area, Record};
use crate::store::{DirStore, FrameRef, Store};
use crate::sys::process_vm;

/// What is read at a time.
const PIECE: usize = 4 << 20;

/// One snapshot of a store, open for reading. Writers, and later snapshots, do not change it.
///
/// ```
/// use stillframe::region::{Session, Snapshot};
///
/// # let dir = tempfile::tempdir()?;
/// let session = Session::builder("field").store(dir.path()).open()?;
/// let mut field = session.alloc::<f32>("field", 4)?;
/// field[3] = 1.5;
/// session.snapshot(&7)?;
/// session.close()?;
///
/// // In another program, at any time:
/// let snapshot = Snapshot::newest(dir.path(), "field")?;
/// assert_eq!(snapshot.read::<f32>("field")?, [0.0, 0.0, 0.0, 1.5]);
/// assert_eq!(snapshot.state::<u64>()?, Some(7));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Snapshot {
    chain: Chain,
    frame: FrameRef,
    record: Record,
}

/// A region of a snapshot.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionInfo {
    /// What the program calls it.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Where it was in the program that wrote it.
    pub address: u64,
}

/// A snapshot in a list.
#[non_exhaustive]
#[derive(Debug, Clone)]
pub struct Version {
    /// Its reference.
    pub frame: FrameRef,
    /// When it was frozen.
    pub taken: SystemTime,
    /// Length of its file in bytes.
    pub bytes: u64,
    /// What the program wrote on it.
    pub labels: BTreeMap<String, String>,
    /// Why it cannot be read, if so. That it can be read does not mean that every byte was checked.
    pub problem: Option<Error>,
}

impl Snapshot {
    /// The newest snapshot of `name` in the store at `dir` of which every byte is as it was written.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] if there is none; [`Kind::Corrupt`] if there are some and none is intact; [`Kind::Usage`] if the
    /// newest one is of a process tree.
    pub fn newest(dir: impl AsRef<Path>, name: &str) -> Result<Snapshot> {
        let found = newest(&DirStore::new(dir.as_ref()), name)?;
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no snapshot of {name} in the store {}; list the store to see what is there", dir.as_ref().display())))
    }

    /// Snapshot number `version` of `name` in the store at `dir`. What is read from it is checked as it is read.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`], [`Kind::Corrupt`] or [`Kind::Usage`], as above.
    pub fn open(dir: impl AsRef<Path>, name: &str, version: u64) -> Result<Snapshot> {
        Snapshot::of(&DirStore::new(dir.as_ref()), &FrameRef::new(name, version)?)
    }

    pub(super) fn of(store: &DirStore, frame: &FrameRef) -> Result<Snapshot> {
        Snapshot::from_chain(store.open(frame)?, frame.clone())
    }

    fn from_chain(chain: Chain, frame: FrameRef) -> Result<Snapshot> {
        let record = Record::read(chain.manifest()).map_err(|e| e.context(format_args!("frame {frame}")))?;
        let record = record.ok_or_else(|| Error::new(Kind::Usage, format!("frame {frame} holds processes, not regions; bring it back with `stillframe restore`")))?;
        Ok(Snapshot { chain, frame, record })
    }

    /// Its reference in the store.
    pub fn frame(&self) -> &FrameRef {
        &self.frame
    }

    /// When it was frozen.
    pub fn taken(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.record.taken_ns)
    }

    /// What the program wrote on it.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.record.labels
    }

    /// Its regions, in the order in which the program made them.
    pub fn regions(&self) -> Vec<RegionInfo> {
        self.record.regions.iter().map(|area| RegionInfo { name: area.name.clone(), bytes: area.len, address: area.address }).collect()
    }

    /// The typed state; none if there was none.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if it is damaged or of another type.
    pub fn state<S: DeserializeOwned>(&self) -> Result<Option<S>> {
        let bytes = self.state_bytes()?;
        if bytes.is_empty() || bytes == b"null" {
            return Ok(None);
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::corrupt(format!("the state of frame {} is of another type: {e}", self.frame)))
    }

    /// The state as bytes, empty if there was none.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if it is damaged.
    pub fn state_bytes(&self) -> Result<Vec<u8>> {
        let len = self.chain.runs(record::STATE).iter().map(Piece::end).max().unwrap_or(0);
        if len != self.record.state_len {
            return Err(Error::corrupt(format!("frame {}: the state has {len} bytes, should have {}", self.frame, self.record.state_len)));
        }
        let mut bytes = vec![0; len as usize];
        self.chain.read_at(record::STATE, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// A region's elements.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] if there is no such region; [`Kind::Usage`] if it is no whole number of elements; [`Kind::Corrupt`].
    pub fn read<T: Pod>(&self, name: &str) -> Result<Vec<T>> {
        let area = self.area(name)?;
        let size = std::mem::size_of::<T>() as u64;
        if size == 0 || area.len % size != 0 {
            return Err(Error::new(Kind::Usage, format!("region '{name}' of {} bytes is no whole number of elements of {size}", area.len)));
        }
        let count = usize::try_from(area.len / size).map_err(|_| Error::corrupt(format!("region '{name}' is larger than memory")))?;
        let mut elements = Vec::new();
        elements.try_reserve_exact(count).map_err(|_| Error::new(Kind::Io, format!("no memory for {} bytes of region '{name}'", area.len)))?;
        elements.resize(count, T::zeroed());
        self.fill(area, bytemuck::cast_slice_mut(&mut elements))?;
        Ok(elements)
    }

    /// Fills `buf` with bytes of a region from `offset`. What was left out of the snapshot reads as zero.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] if there is no such region; [`Kind::Usage`] if it has fewer bytes; [`Kind::Corrupt`].
    pub fn read_at(&self, name: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let area = self.area(name)?;
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > area.len) {
            return Err(Error::new(Kind::Usage, format!("region '{name}' has {} bytes, not {} from {offset}; ask for less", area.len, buf.len())));
        }
        self.piece(area, offset, buf)
    }

    pub(super) fn area(&self, name: &str) -> Result<&Area> {
        let found = self.record.regions.iter().find(|area| area.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.record.regions.iter().map(|area| area.name.as_str()).collect();
            Error::new(Kind::NotFound, format!("frame {} has no region '{name}', only: {}", self.frame, names.join(", ")))
        })
    }

    /// Fills all of a region's memory, which is zero so far.
    pub(super) fn fill(&self, area: &Area, memory: &mut [u8]) -> Result<()> {
        self.scatter(area, memory.as_mut_ptr() as u64)
    }

    /// The same for memory that is not ours to refer to, and that may hold anything. What was left out is left alone.
    pub(super) fn fill_foreign(&self, area: &Area, address: u64) -> Result<()> {
        let zeros = vec![0; PIECE];
        for run in self.chain.runs(area.object).iter().filter(|run| run.source == Source::Zero) {
            let mut at = run.offset;
            while at < run.end().min(area.len) {
                let len = (run.end().min(area.len) - at).min(PIECE as u64);
                put(area, address + at, &zeros[..len as usize])?;
                at += len;
            }
        }
        self.scatter(area, address)
    }

    /// Every block once, by several threads, to wherever its bytes belong.
    fn scatter(&self, area: &Area, address: u64) -> Result<()> {
        let mut blocks: BTreeMap<BlockId, Vec<(u32, &Piece)>> = BTreeMap::new();
        for run in self.chain.runs(area.object).iter().filter(|run| run.end() <= area.len) {
            if let Source::Data { block, at } = run.source {
                blocks.entry(block).or_default().push((at, run));
            }
        }
        let (blocks, next): (Vec<_>, AtomicUsize) = (blocks.into_iter().collect(), AtomicUsize::new(0));
        self.in_parallel(|| {
            let mut buffer = Block::default();
            while let Some((block, runs)) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.chain.read_block(*block, &mut buffer)?;
                let raw = buffer.raw();
                // The index was checked against the block's length, and the block has that length.
                runs.iter().try_for_each(|(at, run)| put(area, address + run.offset, &raw[*at as usize..*at as usize + run.len as usize]))?;
            }
            Ok(())
        })
    }

    fn in_parallel(&self, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
        let workers = thread::available_parallelism().map_or(2, usize::from).clamp(1, 8);
        thread::scope(|scope| {
            let handles: Vec<_> = (0..workers).map(|_| scope.spawn(&work)).collect();
            handles.into_iter().try_for_each(|handle| handle.join().unwrap_or_else(|_| Err(Error::new(Kind::Io, "a filling thread failed"))))
        })
    }

    /// Bytes of a region; what no run covers was left out, and is zero.
    fn piece(&self, area: &Area, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset + buf.len() as u64;
        buf.fill(0);
        let runs = self.chain.runs(area.object);
        let first = runs.partition_point(|run| run.end() <= offset);
        let mut wanted: Vec<(BlockId, u32, &Piece)> = Vec::new();
        for run in runs[first..].iter().take_while(|run| run.offset < end) {
            if let Source::Data { block, at } = run.source {
                wanted.push((block, at, run));
            }
        }
        wanted.sort_unstable_by_key(|(block, at, _)| (*block, *at));
        let (mut current, mut buffer) = (None, Block::default());
        for (block, at, run) in wanted {
            if current != Some(block) {
                self.chain.read_block(block, &mut buffer)?;
                current = Some(block);
            }
            let (from, to) = (run.offset.max(offset), run.end().min(end));
            let at = (u64::from(at) + from - run.offset) as usize;
            buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(&buffer.raw()[at..at + (to - from) as usize]);
        }
        Ok(())
    }
}

/// Writes to memory of our own by a system call, which checks the address.
fn put(area: &Area, address: u64, bytes: &[u8]) -> Result<()> {
    match process_vm::write(std::process::id() as i32, &[(address, bytes.len())], bytes) {
        Ok(len) if len == bytes.len() => Ok(()),
        Ok(_) => Err(Error::new(Kind::Usage, format!("region '{}' is not writable at {address:#x}", area.name))),
        Err(e) => Err(Error::io(format!("cannot fill region '{}'", area.name), e)),
    }
}

/// The newest intact snapshot; none if there is no frame of that name.
pub(super) fn newest(store: &DirStore, name: &str) -> Result<Option<Snapshot>> {
    match store.list(Some(name)) {
        Ok(frames) if frames.is_empty() => return Ok(None),
        Err(e) if e.kind() == Kind::NotFound => return Ok(None),
        Err(e) => return Err(e),
        Ok(_) => {}
    }
    let intact = store.newest_intact(name)?;
    Snapshot::from_chain(intact.chain, intact.frame).map(Some)
}

/// The frames of a name, the newest last.
pub(super) fn versions(store: &DirStore, name: &str) -> Result<Vec<Version>> {
    let frames = store.list(Some(name))?;
    Ok(frames.into_iter().map(|frame| version(store, frame)).collect())
}

fn version(store: &DirStore, frame: FrameRef) -> Version {
    match Snapshot::of(store, &frame) {
        Ok(snapshot) => Version { taken: snapshot.taken(), bytes: snapshot.chain.newest().bytes(), labels: snapshot.record.labels, problem: None, frame },
        Err(problem) => Version { taken: SystemTime::UNIX_EPOCH, bytes: 0, labels: BTreeMap::new(), problem: Some(problem), frame },
    }
}
