//! A store that can be made to fail.

use std::cell::Cell;

use stillframe::checkpoint::{Report, Session};
use stillframe::error::{Error, Kind, Result};
use stillframe::image::{Chain, Written};
use stillframe::store::{DirStore, FrameRef, Lineage, Pending, Store};

/// A store that fails when told to, after all the work is done.
pub struct Moody {
    pub store: DirStore,
    pub fails: Cell<bool>,
}

impl Moody {
    pub fn new(store: DirStore) -> Moody {
        Moody { store, fails: Cell::new(false) }
    }

    /// Takes frame `number` of a session, of which one in `full_every` is full. At times one fails before: what it was to hold, this
    /// one must. `go_on` lets the program run again, which stands still after each frame.
    pub fn take(&self, session: &mut Session, number: usize, full_every: usize, go_on: impl FnOnce()) -> Result<Report> {
        if number % 7 == 3 {
            self.fails.set(true);
            session.frame(self, true).unwrap_err();
            go_on();
        }
        session.frame(self, number % full_every != 0)
    }

    /// Keeps the newest frame of a chain that is complete.
    pub fn forget(&self, name: &str, number: usize, full_every: usize) {
        if number % full_every == full_every - 1 {
            self.store.retain(name, 1).unwrap();
        }
    }
}

impl Store for Moody {
    fn begin(&self, name: &str) -> Result<Pending> {
        self.store.begin(name)
    }

    fn commit(&self, pending: Pending, written: &Written) -> Result<FrameRef> {
        match self.fails.take() {
            true => Err(Error::new(Kind::Io, "the store is in a bad mood")),
            false => self.store.commit(pending, written),
        }
    }

    fn list(&self, name: Option<&str>) -> Result<Vec<FrameRef>> {
        self.store.list(name)
    }

    fn open(&self, frame: &FrameRef) -> Result<Chain> {
        self.store.open(frame)
    }

    fn lineage(&self, name: &str) -> Result<Lineage> {
        self.store.lineage(name)
    }

    fn remove_all(&self, frames: &[FrameRef]) -> Result<()> {
        self.store.remove_all(frames)
    }
}
