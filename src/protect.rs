//! Continuous protection of a process that somebody else started: a frame at every epoch, until it ends or we are told to stop.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Instant;

use crate::checkpoint::Options;
use crate::epochs::{Epoch, Epochs, Schedule};
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::proc::{stat, Pid};
use crate::signals::{News, Signals};
use crate::store::Store;
use crate::sys::pidfd;

/// How to protect a process.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The process; its descendants are part of every frame.
    pub pid: Pid,
    /// How frames are taken.
    pub capture: Options,
    /// When, and which are kept.
    pub schedule: Schedule,
    /// A file for figures in Prometheus' text format, renewed at every epoch.
    pub metrics: Option<PathBuf>,
    /// End after so many frames.
    pub epochs: Option<u64>,
    /// Say nothing but what goes wrong.
    pub quiet: bool,
}

/// Why protection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The process is gone.
    Gone,
    /// A signal asked us to stop; the process runs on.
    Asked,
    /// As many frames as were asked for are taken.
    Done,
}

/// Takes frames until something ends it.
pub fn protect(store: &dyn Store, plan: &Plan) -> Result<End> {
    let signals = Signals::block()?;
    let target = pidfd::open(plan.pid).map_err(|e| Error::io(format!("pid {}: cannot be watched; name a running process", plan.pid), e))?;
    let mut epochs = Epochs::begin(plan.pid, plan.capture.clone(), plan.schedule.clone())?;
    let mut show = Show { terminal: std::io::stderr().is_terminal(), quiet: plan.quiet, open: false, noted: Vec::new() };
    let mut metrics = Metrics::new(plan.pid);
    let mut first = true;
    loop {
        match epochs.take(store) {
            Ok(epoch) => {
                metrics.epoch(&epoch.report, epochs.every());
                show.epoch(&epoch, &metrics);
                first = false;
            }
            Err(_) if !alive(plan.pid) => {}
            // What cannot work at all is said at once, not for ever.
            Err(e) if first => return Err(e),
            Err(e) => {
                metrics.failure();
                show.line(&format!("stillframe: no frame this time: {e}"));
            }
        }
        if let Some(path) = &plan.metrics {
            metrics.write(path)?;
        }
        let end = match plan.epochs.is_some_and(|most| metrics.epochs() >= most) {
            true => Some(End::Done),
            false => wait(&signals, target.as_fd(), epochs.due())?,
        };
        if let Some(end) = end {
            show.finish();
            return Ok(end);
        }
    }
}

fn alive(pid: Pid) -> bool {
    stat::read(pid).is_ok_and(|stat| !stat.is_zombie())
}

/// Waits until the next epoch is due, the target ends or a signal comes.
fn wait(signals: &Signals, target: std::os::fd::BorrowedFd<'_>, due: Instant) -> Result<Option<End>> {
    loop {
        match signals.wait_with(target, due)? {
            (Some(News::Stop(_)), _) => return Ok(Some(End::Asked)),
            (_, true) => return Ok(Some(End::Gone)),
            (Some(News::Due), _) => return Ok(None),
            _ => {}
        }
    }
}

/// What a person sees: one line that is written over on a terminal, a line an epoch elsewhere.
struct Show {
    terminal: bool,
    quiet: bool,
    /// A line without an end is on the terminal.
    open: bool,
    noted: Vec<String>,
}

impl Show {
    fn epoch(&mut self, epoch: &Epoch, metrics: &Metrics) {
        for note in &epoch.report.notes {
            if !self.noted.contains(note) {
                self.noted.push(note.clone());
                self.line(&format!("stillframe: note: {note}"));
            }
        }
        if let Some(every) = epoch.new_interval {
            self.line(&format!("stillframe: the store takes {:.1} s a frame: now one every {:.1} s", epoch.report.durable_ns as f64 / 1e9, every.as_secs_f64()));
        }
        if let Err(e) = &epoch.removed {
            self.line(&format!("stillframe: cannot remove old frames: {e}"));
        }
        if self.quiet {
            return;
        }
        let status = metrics.sentence(&epoch.report);
        if self.terminal {
            // To the start of the line, and nothing left of the one before.
            eprint!("\r{status}\x1b[K");
            let _ = std::io::stderr().flush();
            self.open = true;
        } else {
            eprintln!("{status}");
        }
    }

    fn line(&mut self, words: &str) {
        self.finish();
        eprintln!("{words}");
    }

    fn finish(&mut self) {
        if std::mem::take(&mut self.open) {
            eprintln!();
        }
    }
}

