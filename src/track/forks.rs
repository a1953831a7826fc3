//! Whether a process has forked since it was last asked: a child writes to what it shares with its parent, and may be gone again
//! before anybody looks.

use std::collections::HashSet;
use std::path::Path;

use crate::error::{Error, Result};
use crate::proc::{self, Pid};
use crate::sys::proc_events::ForkEvents;

/// A watch over forks.
#[derive(Debug)]
pub struct Forks {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The kernel tells of each, before the child runs.
    Events(ForkEvents),
    /// The last process id that was given to anybody at all; threads take ids too.
    LastId(Pid),
}

/// Who has forked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forked {
    /// These processes, and no others.
    By(HashSet<Pid>),
    /// Anybody may have.
    Perhaps,
}

impl Forks {
    /// Watches from now on: by the kernel's events where we may hear them, else by the ids that are given out.
    pub fn watch() -> Result<Forks> {
        match ForkEvents::listen() {
            Ok(events) => Ok(Forks { source: Source::Events(events) }),
            Err(_) => Forks::by_last_id(),
        }
    }

    fn by_last_id() -> Result<Forks> {
        Ok(Forks { source: Source::LastId(last_id()?) })
    }

    /// Who has forked since the last call. Of a process that stands still nothing is left untold.
    pub fn since(&mut self) -> Result<Forked> {
        match &mut self.source {
            // More than the queue holds, or no answer at all.
            Source::Events(events) => Ok(events.drain().map_or(Forked::Perhaps, |forks| Forked::By(forks.into_iter().map(|fork| fork.parent).collect()))),
            Source::LastId(before) => {
                let now = last_id()?;
                let same = std::mem::replace(before, now) == now;
                Ok(if same { Forked::By(HashSet::new()) } else { Forked::Perhaps })
            }
        }
    }
}

impl Forked {
    /// Whether one of `pids` has, or may have.
    pub fn concerns(&self, mut pids: impl Iterator<Item = Pid>) -> bool {
        match self {
            Forked::By(parents) => pids.any(|pid| parents.contains(&pid)),
            Forked::Perhaps => true,
        }
    }
}

fn last_id() -> Result<Pid> {
    let path = Path::new("/proc/loadavg");
    let text = proc::text(path)?;
    text.split_whitespace().last().and_then(|word| word.parse().ok()).ok_or_else(|| Error::refused(format!("cannot read {}: it says {text:?}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn fork_and_end() {
        assert!(Command::new("/bin/true").status().unwrap().success());
    }

    /// Other tests of this process fork too, so that only what must be told can be checked.
    #[test]
    fn a_child_that_is_dead_again_is_told() {
        let us = std::process::id() as Pid;
        for mut forks in [Forks::watch().unwrap(), Forks::by_last_id().unwrap()] {
            for _ in 0..20 {
                fork_and_end();
                assert!(forks.since().unwrap().concerns([us].into_iter()), "{forks:?}");
            }
        }
    }

    /// A shell of its own, which nobody else makes fork, tells what is not told.
    #[test]
    fn a_process_that_does_not_fork_is_not_suspected() {
        let Ok(events) = ForkEvents::listen() else { return };
        let mut forks = Forks { source: Source::Events(events) };
        let mut child = Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pid = child.id() as Pid;
        let _ = forks.since().unwrap();
        (0..20).for_each(|_| fork_and_end());
        let told = forks.since().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!told.concerns([pid].into_iter()), "{told:?}");
    }

    #[test]
    fn what_may_be_concerns_everybody() {
        assert!(Forked::Perhaps.concerns([1].into_iter()));
        assert!(Forked::By([7].into()).concerns([1, 7].into_iter()));
        assert!(!Forked::By([7].into()).concerns([1, 8].into_iter()));
    }
}
