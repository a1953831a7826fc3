//! A second instance in a place of its own: fresh namespaces with an init, or no parent that waits for it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{restore, Loaded, Options};
use crate::error::{Context, Error, Kind, Result};
use crate::isolate::{self, Network};
use crate::proc::{self, status::Status, Pid};
use crate::supervise;
use crate::sys::{clone, pidfd};

/// Where a second instance is to live.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Fresh pid, mount, uts and ipc namespaces with this network; none: the caller's namespaces.
    pub isolate: Option<Network>,
    /// In a session of its own, with nothing of the caller's terminal and pipes held open by its init.
    pub detach: bool,
}

/// A second instance that runs apart.
#[derive(Debug)]
pub struct Launched {
    /// Its root process, as the caller numbers it.
    pub pid: Pid,
    /// Our child that brought it back: isolated, the init of its pid namespace, which ends as the root does; else dead by now.
    pub helper: Pid,
    /// Things worth a line.
    pub notes: Vec<String>,
}

/// What the child tells us.
#[derive(Serialize, Deserialize)]
enum Word {
    Runs { pid: Pid, notes: Vec<String> },
    Failed(String),
}

/// Brings `frame` back in `place`; returns when it runs. The calling process must have a single thread. If it enters a network
/// namespace (`Network::At`), it stays there.
pub fn launch(frame: &Loaded, options: &Options, place: &Place) -> Result<Launched> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    if let Some(network) = &place.isolate {
        network.enter()?;
    }
    let flags = place.isolate.as_ref().map_or(0, Network::clone_flags);
    let child = clone::child(flags, || in_child(frame, options, place, writer));
    let helper = child.map_err(|e| Error::io("cannot make the namespaces of an isolated instance (needs CAP_SYS_ADMIN)", e))?;
    let (root, notes) = word_of(helper, reader)?;
    let pid = if place.isolate.is_some() { outer_pid(helper, root).unwrap_or(helper) } else { root };
    Ok(Launched { pid, helper, notes })
}

/// The child that restores. Isolated, it stays as the init of the new pid namespace.
fn in_child(frame: &Loaded, options: &Options, place: &Place, writer: OwnedFd) -> i32 {
    let outcome = (|| {
        if place.detach {
            nix::unistd::setsid().context("cannot lead a session")?;
        }
        // Whoever kills our starter before we have told it gives the restore up.
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("cannot ask for a signal at the end of our parent")?;
        if let Some(network) = &place.isolate {
            isolate::furnish(network, &frame.manifest.host)?;
        }
        let held = supervise::hold_signals()?;
        let restored = restore(frame, options)?;
        nix::sys::prctl::set_pdeathsig(None).context("cannot outlive our parent")?;
        Ok::<_, Error>((restored, held))
    })();
    let (word, running) = match outcome {
        Ok((restored, held)) => (Word::Runs { pid: restored.pid, notes: restored.notes }, Some((restored.pid, held))),
        Err(error) => (Word::Failed(error.to_string()), None),
    };
    let told = serde_json::to_vec(&word).is_ok_and(|word| File::from(writer).write_all(&word).is_ok());
    if !told && running.is_some() {
        // Nobody knows of the instance, so there is to be none. The init of a namespace takes all with it.
        frame.manifest.processes.iter().for_each(|process| end(process.node.pid));
    }
    match running {
        None => 1,
        Some(_) if !told || place.isolate.is_none() => 0,
        Some((pid, held)) => {
            if place.detach && !options.descriptors.to_stdio {
                forget_outputs();
            }
            supervise::until_exit(pid, &held).unwrap_or(1)
        }
    }
}

fn end(pid: Pid) {
    if let Ok(process) = pidfd::open(pid) {
        let _ = pidfd::send_signal(std::os::fd::AsFd::as_fd(&process), libc::SIGKILL);
    }
}

/// A detached init must not keep a script's pipes open.
fn forget_outputs() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// Waits for the child's word: the root's process id as it sees it, and its notes.
fn word_of(child: Pid, reader: OwnedFd) -> Result<(Pid, Vec<String>)> {
    let mut text = Vec::new();
    File::from(reader).read_to_end(&mut text).context("cannot hear from the restoring process")?;
    let why = match serde_json::from_slice(&text) {
        Ok(Word::Runs { pid, notes }) => return Ok((pid, notes)),
        Ok(Word::Failed(why)) => why,
        Err(_) => "the restoring process died".to_owned(),
    };
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None);
    Err(Error::new(Kind::Refused, why))
}

/// The number in our pid namespace of the process that the init `child` knows as `inner`; none once it is gone.
pub fn outer_pid(child: Pid, inner: Pid) -> Option<Pid> {
    let all = proc::numbers(Path::new("/proc")).ok()?;
    let space = proc::link(&proc::path(child, "ns/pid")).ok()?;
    all.into_iter().find(|&pid| {
        proc::link(&proc::path(pid, "ns/pid")).ok().as_ref() == Some(&space) && Status::read(pid).and_then(|status| status.innermost("NSpid")).ok() == Some(inner)
    })
}
