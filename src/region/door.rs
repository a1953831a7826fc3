//! What others see of a session: the name that it holds, and the socket where it is asked for snapshots.
//!
//! Both stay behind when a frame of the whole program is taken: of several instances, one can have them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::porter::{answer, Porter, Requests};
use super::session::Inner;
use crate::error::{Context, Error, Kind, Result};
use crate::proc;
use crate::record::Program;
use crate::request::Holder;
use crate::store::{DirStore, Hold};

/// The door of a session; shut while the program stands aside, and for good when the session is closed.
#[derive(Debug, Default)]
pub(super) struct Door {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    Open(Porter, Hold),
    /// What is in flight is still to be stored.
    Leaving { _name: Hold },
    /// For as long as a frame of the program is taken.
    Aside,
    /// After that, until the name can be had.
    #[default]
    Shut,
    Closed,
}

impl Door {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the name, if it is not ours already.
    pub fn open(&self, store: &DirStore, name: &str, requests: &Arc<Requests>) -> Result<()> {
        let mut state = self.state();
        match *state {
            State::Open(..) => Ok(()),
            State::Aside => Err(Error::new(Kind::Busy, "a frame of the whole program is being taken; take the snapshot after that")),
            State::Leaving { .. } | State::Closed => Err(Error::new(Kind::Usage, "the session is closed; open another one")),
            State::Shut => {
                let program = ourselves()?;
                let porter = Porter::new(requests.clone())?;
                let who = format!("process {} ({}) on {}", program.pid, program.command, program.hostname);
                let holder = Holder { who, hostname: program.hostname, socket: porter.socket.clone() };
                let hold = store.hold(name, &holder.to_line())?;
                *state = State::Open(porter, hold);
                Ok(())
            }
        }
    }

    /// Whoever waits for a snapshot is told that there will be none.
    fn stand_aside(&self, requests: &Requests) {
        let mut state = self.state();
        if matches!(*state, State::Open(..) | State::Shut) {
            *state = State::Aside;
        }
        drop(state);
        answer(requests.take(), Err(&Error::new(Kind::Busy, "it takes a frame of itself; ask again")));
    }

    /// Whether it stood aside until now.
    fn comes_back(&self) -> bool {
        let mut state = self.state();
        let aside = matches!(*state, State::Aside);
        if aside {
            *state = State::Shut;
        }
        aside
    }

    /// Nobody is heard any more; the name is still ours.
    pub fn close_to_visitors(&self, requests: &Requests) {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, State::Closed) {
            State::Open(porter, hold) => {
                drop(porter);
                State::Leaving { _name: hold }
            }
            _ => State::Closed,
        };
        // They see a hang-up.
        drop(requests.take());
    }

    /// The name is free for others.
    pub fn close(&self) {
        *self.state() = State::Closed;
    }
}

/// Who this program is.
pub(super) fn ourselves() -> Result<Program> {
    let text = |path: &str| proc::text(std::path::Path::new(path)).map(|text| text.trim().to_owned());
    let hostname = nix::unistd::gethostname().context("cannot read the host name")?;
    Ok(Program { pid: std::process::id() as i32, command: text("/proc/self/comm")?, hostname: hostname.to_string_lossy().into_owned() })
}

/// The sessions of this process.
static SESSIONS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// Notes a new session.
pub(super) fn enter(session: &Arc<Inner>) {
    let mut sessions = SESSIONS.lock().unwrap_or_else(PoisonError::into_inner);
    sessions.retain(|known| known.strong_count() > 0);
    sessions.push(Arc::downgrade(session));
}

/// All sessions of this process, with nothing in flight and nothing held that a frame of the program could not keep or a second
/// instance could not share. When this is dropped, in whichever instance, they go on: with the next snapshot in full, and with
/// the name as soon as no other instance has it.
pub(crate) struct Aside(Vec<Arc<Inner>>);

impl Aside {
    /// Waits until what is in flight is stored.
    pub(crate) fn stand() -> Aside {
        let known = SESSIONS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sessions: Vec<_> = known.iter().filter_map(Weak::upgrade).filter(|session| session.is_ours()).collect();
        for session in &sessions {
            session.door.stand_aside(&session.requests);
            // A snapshot that was let in before is in the queue when we have this.
            drop(session.freezer());
            session.drain();
            session.freezer().unwatch();
        }
        Aside(sessions)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        for session in &self.0 {
            if session.door.comes_back() {
                session.freezer().watch();
                // If another instance has the name, the next snapshot tries again, and says so.
                let _ = session.open_door();
            }
        }
    }
}
