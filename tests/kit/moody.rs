//! A store that can be made to fail.

use std::cell::Cell;

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
