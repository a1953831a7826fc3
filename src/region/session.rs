//! A session: one program's regions, its snapshots, and what it goes on from.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use bytemuck::Pod;
use crossbeam_channel::{bounded, unbounded, Sender};
use serde::de::DeserializeOwned;
use serde::Serialize;

use super::builder::{Builder, InFlight, Resume};
use super::deliver::{self, Job, Shared, Shot};
use super::door::{self, ourselves, Door};
use super::freeze::Freezer;
use super::memory::{check, check_foreign, Area, Region, Table};
use super::porter::Requests;
use super::snapshot::{self, Snapshot, Version};
use super::ticket::{Progress, Ticket};
use crate::error::{Context, Error, Kind, Result};
use crate::store::{DirStore, FrameRef, Store};
use crate::sys::memory::{Foreign, Owned};
use crate::sys::tally::{self, Tally};
use crate::sys::{pidfd, twin};

/// Named regions of this program, and their snapshots in a store.
///
/// ```
/// use stillframe::region::Session;
///
/// # let dir = tempfile::tempdir()?;
/// let session = Session::builder("count").store(dir.path()).open()?;
/// let mut counts = session.alloc::<u64>("counts", 10)?;
/// counts[3] += 1;
/// session.snapshot("a state of any serde type")?;
/// drop(counts);
/// session.close()?; // waits for what is in flight
///
/// let session = Session::builder("count").store(dir.path()).open()?;
/// assert_eq!(session.state::<String>()?.as_deref(), Some("a state of any serde type"));
/// assert_eq!(session.alloc::<u64>("counts", 10)?[3], 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It can be shared between threads; one snapshot is split off at a time. When it is dropped, snapshots in flight are still
/// stored (cancel them to be quicker), and the name is free for others.
///
/// A child made by `fork` must not use its parent's session, and is refused. While
/// [`checkpoint_self`](crate::inside::checkpoint_self) takes a frame of the whole program, sessions stand aside: what is in
/// flight is stored first, and then the original has its name and its regions as before. So has a second instance, but the
/// name only when the original is gone; until then its snapshots fail with [`Kind::Held`]. (So would those of the original, if
/// somebody else took the name in that time.)
pub struct Session {
    pub(super) inner: Arc<Inner>,
    worker: Option<JoinHandle<()>>,
    exit_on: Vec<Tally>,
    snapshot_on: Vec<Tally>,
}

/// What regions keep alive after their session.
pub(super) struct Inner {
    pub settings: Arc<Builder>,
    pub table: Table,
    pub shared: Arc<Shared>,
    pub door: Door,
    pub requests: Arc<Requests>,
    jobs: Sender<Job>,
    freezer: Mutex<Freezer>,
    last: Mutex<Instant>,
    opened: Instant,
    resumed: Option<Snapshot>,
    /// Whose session it is.
    pid: u32,
}

impl Inner {
    /// No in a child made by fork, which has none of our threads.
    pub fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    fn check_ours(&self) -> Result<()> {
        match self.is_ours() {
            true => Ok(()),
            false => Err(Error::new(Kind::Usage, format!("session {} belongs to process {}, of which this is a child; open one of its own", self.settings.name, self.pid))),
        }
    }

    pub fn open_door(&self) -> Result<()> {
        self.door.open(&self.shared.store, &self.settings.name, &self.requests)
    }

    /// Waits until the transfer thread has done all that it was asked for.
    pub fn drain(&self) {
        let (done, all_done) = bounded(0);
        if self.jobs.send(Job::Pass(done)).is_ok() {
            let _ = all_done.recv();
        }
    }

    pub fn forget(&self, id: u64) {
        // A child's memory is no region, and its parent's is none of its business.
        if !self.is_ours() {
            return;
        }
        let mut freezer = self.freezer();
        if let Some(area) = self.table.list().iter().find(|area| area.id == id) {
            freezer.forget(area);
        }
        self.table.remove(id);
    }

    pub fn freezer(&self) -> MutexGuard<'_, Freezer> {
        self.freezer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The snapshot that this session goes on from, if it has a region of that name.
    fn content(&self, name: &str) -> Option<(&Snapshot, crate::record::Area)> {
        let snapshot = self.resumed.as_ref()?;
        snapshot.area(name).ok().map(|area| (snapshot, area.clone()))
    }
}

impl Session {
    /// Settings for a session of this name, as in `stillframe list NAME`.
    pub fn builder(name: &str) -> Builder {
        Builder::new(name)
    }

    pub(super) fn open(settings: Arc<Builder>, root: PathBuf) -> Result<Session> {
        let store = DirStore::new(root);
        let (exit_on, snapshot_on) = (tallies(settings.exit_on.as_deref())?, tallies(settings.snapshot_on.as_deref())?);
        let (door, requests) = (Door::default(), Arc::new(Requests::default()));
        door.open(&store, &settings.name, &requests)?;
        let resumed = match &settings.resume {
            Resume::Fresh => None,
            Resume::Newest => snapshot::newest(&store, &settings.name)?,
            Resume::Version(number) => Some(Snapshot::of(&store, &FrameRef::new(&settings.name, *number)?)?),
            Resume::From(frame) => Some(Snapshot::of(&store, frame)?),
        };
        let program = ourselves()?;
        let handle: OwnedFd = pidfd::open(program.pid).context("cannot make a descriptor of this process")?;
        let freezer = Mutex::new(Freezer::new(&settings, handle)?);
        let shared = Arc::new(Shared { store, settings: settings.clone(), program, in_flight: AtomicUsize::new(0), base: Mutex::new(None), failure: Mutex::new(None) });
        let (jobs, orders) = unbounded();
        let worker = {
            let shared = shared.clone();
            silent_thread("stillframe", move || deliver::serve(&shared, &orders))?
        };
        let now = Instant::now();
        let inner = Arc::new(Inner { settings, table: Table::default(), shared, door, requests, jobs, freezer, last: Mutex::new(now), opened: now, resumed, pid: std::process::id() });
        door::enter(&inner);
        let session = Session { inner, worker: Some(worker), exit_on, snapshot_on };
        if let (Some(call), Some(snapshot)) = (&session.inner.settings.callbacks.restored, &session.inner.resumed) {
            call(snapshot);
        }
        Ok(session)
    }

    /// The snapshot that this session goes on from; none if it starts anew.
    pub fn resumed(&self) -> Option<&Snapshot> {
        self.inner.resumed.as_ref()
    }

    /// The typed state of the snapshot that this session goes on from; none if it starts anew or there was none.
    ///
    /// # Errors
    ///
    /// [`Kind::Corrupt`] if the state is of another type.
    pub fn state<S: DeserializeOwned>(&self) -> Result<Option<S>> {
        self.resumed().map_or(Ok(None), Snapshot::state)
    }

    /// A region of `count` elements: what the snapshot holds that the session goes on from, else zeros.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] if the name is taken, or if the snapshot's region of that name has another size; [`Kind::Refused`] if
    /// the same address is wanted and taken; [`Kind::Io`] if there is no memory.
    pub fn alloc<T: Pod>(&self, name: &str, count: usize) -> Result<Region<T>> {
        let len = (std::mem::size_of::<T>() as u64).saturating_mul(count as u64);
        check(name, len)?;
        self.inner.check_ours()?;
        let content = self.inner.content(name);
        if let Some((snapshot, area)) = content.as_ref().filter(|(_, area)| area.len != len) {
            return Err(Error::new(Kind::Usage, format!("region '{name}' has {} bytes in {}, not {len}; ask for as many, or open the session with Resume::Fresh", area.len, snapshot.frame())));
        }
        let mut memory = match content.as_ref().filter(|_| self.inner.settings.same_addresses) {
            None => Owned::new(len).context(format!("no memory for region '{name}' of {len} bytes"))?,
            Some((_, area)) => Owned::at(area.address, len).map_err(|e| Error::refused(format!("region '{name}' cannot lie at {:#x} again ({e}); start the program anew, without address randomisation", area.address)))?,
        };
        if let Some((snapshot, area)) = content {
            snapshot.fill(&area, &mut memory)?;
        }
        let area = Area { id: 0, name: name.to_owned(), address: memory.address(), len, excluded: Vec::new(), owned: true, view: Some(memory.view()) };
        let id = self.inner.table.add(area)?;
        Ok(Region::new(memory, self.inner.clone(), id, name))
    }

    /// Adds memory of the program's own as a region. It keeps its content; [`Session::load`] puts back that of a snapshot.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] if the name is taken or the memory is not mapped; [`Kind::Refused`] for shared memory.
    pub fn register(&self, name: &str, memory: Foreign) -> Result<()> {
        check(name, memory.len())?;
        check_foreign(name, memory.address(), memory.len())?;
        let area = Area { id: 0, name: name.to_owned(), address: memory.address(), len: memory.len(), excluded: Vec::new(), owned: false, view: None };
        self.inner.table.add(area).map(drop)
    }

    /// Fills registered memory from the snapshot that the session goes on from; says whether that has such a region.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] if nothing is registered under that name; [`Kind::Usage`] if the sizes differ.
    pub fn load(&self, name: &str) -> Result<bool> {
        self.inner.check_ours()?;
        let area = self.registered(name)?;
        let Some((snapshot, saved)) = self.inner.content(name) else { return Ok(false) };
        if saved.len != area.len {
            return Err(Error::new(Kind::Usage, format!("region '{name}' has {} bytes in {}, not {}; register as many", saved.len, snapshot.frame(), area.len)));
        }
        snapshot.fill_foreign(&saved, area.address)?;
        Ok(true)
    }

    /// Leaves `len` bytes from `offset` of registered memory out of every later snapshot.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] for a name that is not registered; [`Kind::Usage`] for bytes that it does not have.
    pub fn exclude(&self, name: &str, offset: u64, len: u64) -> Result<()> {
        let area = self.registered(name)?;
        self.inner.table.exclude(area.id, offset, offset.saturating_add(len))
    }

    /// Takes registered memory out of every later snapshot. To be called before the memory goes away. A write-protected snapshot
    /// in flight is waited for, until it has read the memory; so it is when a [`Region`] is dropped.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] if nothing is registered under that name.
    pub fn unregister(&self, name: &str) -> Result<()> {
        self.inner.forget(self.registered(name)?.id);
        Ok(())
    }

    fn registered(&self, name: &str) -> Result<Area> {
        let found = self.inner.table.find(name).filter(|area| !area.owned);
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("no memory is registered as '{name}'; register it first")))
    }

    /// Takes a snapshot of all regions, with `state` beside them (`&()` for none). Returns when the memory is frozen; it may be
    /// changed from then on. The caller sees to it that no other thread writes to a region meanwhile.
    ///
    /// Numbers in the state come back bit for bit, except that it cannot hold infinities and what is not a number.
    ///
    /// # Errors
    ///
    /// [`Kind::Busy`] if one is in flight and the policy says so; [`Kind::Cancelled`] if the quiesce callback objects;
    /// [`Kind::Refused`] or [`Kind::Io`] if memory cannot be frozen. What fails later is told by the ticket.
    pub fn snapshot<S: Serialize + ?Sized>(&self, state: &S) -> Result<Ticket> {
        let state = serde_json::to_vec(state).map_err(|e| Error::new(Kind::Usage, format!("the state cannot be written: {e}")))?;
        self.take(state, BTreeMap::new())
    }

    /// The same with bytes as state, and `labels` beside those of the session.
    ///
    /// # Errors
    ///
    /// As [`Session::snapshot`].
    pub fn snapshot_labelled(&self, state: &[u8], labels: &[(&str, &str)]) -> Result<Ticket> {
        self.take(state.to_vec(), labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    fn take(&self, state: Vec<u8>, labels: BTreeMap<String, String>) -> Result<Ticket> {
        let inner = &self.inner;
        inner.check_ours()?;
        let mut freezer = inner.freezer();
        inner.open_door()?;
        // Waiting for another thread's split is not the pause of this one.
        let progress = Progress::new(Instant::now())?;
        let ticket = |skipped| Ticket { progress: progress.clone(), skipped, jobs: inner.jobs.clone() };
        if let Some(refusal) = self.refusal() {
            if inner.settings.in_flight != InFlight::Skip {
                return Err(refusal);
            }
            progress.fail(refusal);
            return Ok(ticket(true));
        }
        // A signal that comes from here on asks for another one.
        self.snapshot_on.iter().for_each(Tally::forget);
        let areas = inner.table.list();
        let bytes = areas.iter().flat_map(|area| area.wanted(&[(0, area.len)])).map(|(start, end)| end - start).sum();
        let frozen = self.quiesced(|| freezer.freeze(areas, inner.shared.base()))?;
        let changed = frozen.parts.iter().flat_map(|part| &part.stored).map(|(start, end)| end - start).sum();
        progress.update(|info| {
            (info.method, info.why) = (frozen.method, frozen.why.clone());
            (info.bytes, info.changed_bytes) = (bytes, changed);
            (info.copied_bytes, info.peak_copied_bytes) = (frozen.copied, frozen.copied);
            info.parent = frozen.base.as_ref().map(|base| base.frame.clone());
        });
        let labels = inner.settings.labels.clone().into_iter().chain(labels).collect();
        let shot = Shot { number: freezer.count, progress: progress.clone(), labels, state, frozen, waiting: inner.requests.take() };
        inner.shared.in_flight.fetch_add(1, Ordering::AcqRel);
        *inner.last.lock().unwrap_or_else(PoisonError::into_inner) = progress.started();
        progress.update(|info| info.pause_ns = progress.started().elapsed().as_nanos().try_into().unwrap_or(u64::MAX));
        let sent = inner.jobs.send(Job::Shot(Box::new(shot)));
        sent.map_err(|_| Error::new(Kind::Usage, "the session is closed; open another one"))?;
        Ok(ticket(false))
    }

    /// Why none can be taken now.
    fn refusal(&self) -> Option<Error> {
        let in_flight = self.inner.shared.in_flight.load(Ordering::Acquire);
        let room = match self.inner.settings.in_flight {
            InFlight::Queue(waiting) => waiting.saturating_add(1),
            InFlight::Skip | InFlight::Refuse => 1,
        };
        (in_flight >= room).then(|| Error::new(Kind::Busy, format!("{in_flight} of this session's snapshots are in flight; wait for one, or let them queue")))
    }

    /// Runs `work` between the callbacks.
    fn quiesced<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let callbacks = &self.inner.settings.callbacks;
        if let Some(call) = &callbacks.quiesce {
            call().map_err(|why| Error::new(Kind::Cancelled, format!("the program's quiesce callback objects: {why}")))?;
        }
        let done = work();
        if let Some(call) = &callbacks.resume {
            call();
        }
        done
    }

    /// Whether it is time for a snapshot: the interval has passed since the last one, or one was asked for from outside
    /// (`stillframe checkpoint --name NAME`, or a signal of [`Builder::snapshot_on`]). No while one is in flight. Cheap enough for an inner loop.
    pub fn due(&self) -> bool {
        let last = *self.inner.last.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = self.inner.settings.every.is_some_and(|every| last.elapsed() >= every);
        (passed || self.inner.requests.any() || self.snapshot_on.iter().any(Tally::came)) && self.inner.shared.in_flight.load(Ordering::Acquire) == 0
    }

    /// Whether the program should take a last snapshot and exit: its time limit has passed, or somebody asked for it from
    /// outside (`stillframe checkpoint --name NAME --then kill`, or a signal of [`Builder::exit_on`]).
    pub fn should_exit(&self) -> bool {
        self.inner.requests.exit() || self.exit_on.iter().any(Tally::came) || self.inner.settings.time_limit.is_some_and(|limit| self.inner.opened.elapsed() >= limit)
    }

    /// How the last snapshot ended that failed, for programs that drop their tickets; told once.
    pub fn take_failure(&self) -> Option<Error> {
        self.inner.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The snapshots of this name, the newest last.
    ///
    /// ```
    /// use stillframe::region::Session;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let session = Session::builder("job").store(dir.path()).increments(0).label("run", "7").open()?;
    /// for step in 0..3 {
    ///     session.snapshot(&step)?.wait(stillframe::region::Level::Stored, std::time::Duration::from_secs(60))?;
    /// }
    /// session.retain(2)?;
    /// let left: Vec<_> = session.versions()?.iter().map(|version| (version.frame.seq(), version.labels["run"].clone())).collect();
    /// assert_eq!(left, [(2, "7".to_owned()), (3, "7".to_owned())]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Kind::Io`] if the store cannot be read.
    pub fn versions(&self) -> Result<Vec<Version>> {
        snapshot::versions(&self.inner.shared.store, &self.inner.settings.name)
    }

    /// Deletes all but the newest `keep` snapshots of this name; says which went.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] for 0; [`Kind::Io`] if the store cannot be written.
    pub fn retain(&self, keep: usize) -> Result<Vec<FrameRef>> {
        self.inner.shared.store.retain(&self.inner.settings.name, keep)
    }

    /// Waits until nothing is in flight any more, and says whether all went well since the last look.
    ///
    /// # Errors
    ///
    /// What made a snapshot fail.
    pub fn close(mut self) -> Result<()> {
        self.end();
        self.take_failure().map_or(Ok(()), Err)
    }

    fn end(&mut self) {
        if !self.inner.is_ours() {
            // The threads are the parent's, and so is the name.
            std::mem::forget((self.worker.take(), self.inner.clone()));
            return;
        }
        if let Some(worker) = self.worker.take() {
            self.inner.door.close_to_visitors(&self.inner.requests);
            let _ = self.inner.jobs.send(Job::End);
            let _ = worker.join();
            self.inner.door.close();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("name", &self.inner.settings.name).finish_non_exhaustive()
    }
}

/// A thread that no signal of the program is delivered to. It has its name, by which it is told from the program's, when this
/// returns.
pub(super) fn silent_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let (started, seen) = std::sync::mpsc::channel();
    let named = move || {
        let _ = started.send(());
        work();
    };
    let mask = twin::block_all().context("cannot block signals")?;
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(named);
    twin::restore_mask(&mask);
    let handle = spawned.context("cannot start a thread")?;
    let _ = seen.recv();
    Ok(handle)
}

/// Counts of the signals in a list of names.
fn tallies(names: Option<&str>) -> Result<Vec<Tally>> {
    let named = |name: &str| {
        let name = name.trim();
        let known = tally::KNOWN.map(|(known, _)| known).join(", ");
        let counted = Tally::new(name.strip_prefix("SIG").unwrap_or(name)).ok_or_else(|| Error::new(Kind::Usage, format!("'{name}' is no signal to be counted; use {known}")))?;
        counted.map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => Error::new(Kind::Usage, format!("the program has a handler for signal {name}; open the session first, or leave the signal to one of them")),
            _ => Error::io(format!("cannot handle signal {name}"), e),
        })
    };
    names.unwrap_or_default().split(',').filter(|name| !name.trim().is_empty()).map(named).collect()
}
