//! What leads outside the tree: on the standard descriptors it is replaced at a restore.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::restore::RestoreOptions;
use super::scan::Found;
use super::{Capture, Kind};
use crate::error::{Context, Error, Result};

/// An end of something whose other end is not the tree's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// What it was.
    pub what: String,
    /// Which of the standard descriptors stands in for it.
    pub stdio: i32,
}

/// The standard descriptor that `found`, or another description of the same object, is known by.
fn stdio(capture: &Capture<'_>, found: &Found) -> Option<i32> {
    found.stdio.or_else(|| capture.scan.of_inode(found.inode()).filter_map(|(_, other)| other.stdio).min())
}

/// Captures something that leads outside, if it is a standard descriptor.
pub fn capture(capture: &Capture<'_>, found: &Found, what: &str) -> Option<Kind> {
    let stdio = stdio(capture, found)?;
    Some(Kind::External(State { what: what.to_owned(), stdio }))
}

/// Captures a terminal outside, whatever its number.
pub fn terminal(capture: &Capture<'_>, found: &Found) -> Kind {
    let by_access = i32::from(found.access() == libc::O_WRONLY);
    Kind::External(State { what: format!("terminal {}", found.link), stdio: stdio(capture, found).unwrap_or(by_access) })
}

/// The refusal of `what`, which leads outside on a descriptor that nothing can stand in for.
pub fn refuse(found: &Found, what: &str) -> Error {
    Error::refused(format!("{} is {what}, whose other end is outside the tree; close it, checkpoint the other process too, or take the frame with --external close to have it hung up", found.place()))
}

/// Our own standard descriptor, or /dev/null.
pub fn restore(state: &State, options: &RestoreOptions, notes: &mut Vec<String>) -> Result<OwnedFd> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let own: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    if let (true, Some(own)) = (options.to_stdio, own.get(state.stdio as usize)) {
        return own.try_clone_to_owned().context(format!("cannot hand on our own descriptor {}", state.stdio));
    }
    notes.push(format!("{}, which led outside the tree, is now /dev/null", state.what));
    Ok(OpenOptions::new().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?.into())
}
