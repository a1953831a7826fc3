//! Frames of one running tree, epoch after epoch: when the next is due, whether it is an increment, which old ones go.

use std::time::{Duration, Instant};

use crate::checkpoint::{Options, Report, Session, Then};
use crate::error::{Error, Kind, Result};
use crate::proc::Pid;
use crate::store::{FrameRef, Store};

/// How often frames are taken, and which are kept.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// From the start of one frame to the start of the next.
    pub every: Duration,
    /// One frame in so many holds everything; the others hold what was written since the one before. At least 1.
    pub full_every: u32,
    /// How many frames stay in the store; none: all.
    pub keep: Option<usize>,
}

/// The frames of one tree.
#[derive(Debug)]
pub struct Epochs {
    session: Session,
    schedule: Schedule,
    since_full: u32,
    due: Instant,
    every: Duration,
}

/// One epoch's outcome.
#[derive(Debug)]
pub struct Epoch {
    /// The frame.
    pub report: Report,
    /// The interval that the store can keep up with, if that has just changed.
    pub new_interval: Option<Duration>,
    /// Frames that were removed; or why they could not be.
    pub removed: Result<Vec<FrameRef>>,
}

impl Epochs {
    /// Frames of `root` and its descendants; the first is due at once.
    pub fn begin(root: Pid, options: Options, schedule: Schedule) -> Result<Epochs> {
        if schedule.full_every == 0 {
            return Err(Error::new(Kind::Usage, "one frame in 0 cannot be full; say 1 for full frames only"));
        }
        let every = schedule.every;
        Ok(Epochs { session: Session::new(root, options)?, schedule, since_full: 0, due: Instant::now(), every })
    }

    /// When the next frame is to begin.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The interval in force.
    pub fn every(&self) -> Duration {
        self.every
    }

    /// Lets `time` pass before the next frame.
    pub fn postpone(&mut self, time: Duration) {
        self.due = Instant::now() + time;
    }

    /// Takes the next frame. After a failure the next one holds what this one was to hold.
    pub fn take(&mut self, store: &dyn Store) -> Result<Epoch> {
        let begun = Instant::now();
        self.due = begun.checked_add(self.every).unwrap_or(begun);
        let report = self.session.frame(store, self.since_full > 0 && self.since_full < self.schedule.full_every)?;
        self.since_full = if report.parent.is_some() { self.since_full + 1 } else { 1 };
        let new_interval = self.adapt(begun.elapsed());
        self.due = begun.checked_add(self.every).unwrap_or(begun).max(Instant::now());
        let removed = self.schedule.keep.map_or(Ok(Vec::new()), |keep| store.retain(report.frame.name(), keep));
        Ok(Epoch { report, new_interval, removed })
    }

    /// One last frame, after which the tree is stopped or dead.
    pub fn last(&mut self, store: &dyn Store, then: Then) -> Result<Report> {
        self.session.then(then);
        self.session.frame(store, self.since_full > 0 && self.since_full < self.schedule.full_every)
    }

    /// A store that takes longer than the interval gets more time: a quarter more than it took. It gets less again when it is quicker.
    fn adapt(&mut self, took: Duration) -> Option<Duration> {
        let wanted = match took > self.schedule.every {
            true => Duration::from_millis((took + took / 4).as_millis() as u64 / 100 * 100 + 100),
            false => self.schedule.every,
        };
        // Small ups and downs are not worth a word.
        let close = wanted < self.every * 3 / 2 && wanted > self.every * 2 / 3;
        if wanted == self.every || (close && wanted != self.schedule.every) {
            return None;
        }
        self.every = wanted;
        Some(wanted)
    }
}
