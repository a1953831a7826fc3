//! Asking a linked program for a snapshot, from outside: where it listens, and what is said.
//!
//! The program's session writes into its lock file who it is and at which socket it listens. One line goes there, one line of
//! JSON comes back when the snapshot is safe.

use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Kind, Result};
use crate::store::DirStore;

/// The request.
pub const SNAPSHOT: &str = "snapshot";
/// The request that also tells the program to exit after it.
pub const SNAPSHOT_AND_EXIT: &str = "snapshot, then exit";

/// What a session writes of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process, command and host, in words.
    pub who: String,
    /// Host name; a socket leads nowhere from another one.
    pub hostname: String,
    /// Name of its abstract socket.
    pub socket: String,
}

impl Holder {
    /// As a line of text that people can read too.
    pub fn to_line(&self) -> String {
        format!("{}\n{}\n", self.who, serde_json::to_string(self).unwrap_or_default())
    }

    /// From such text.
    pub fn from_text(text: &str) -> Option<Holder> {
        serde_json::from_str(text.lines().nth(1)?).ok()
    }
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is stored.
    Stored(Stored),
    /// It failed, and why.
    Failed(String),
}

/// A snapshot that a linked program took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its reference.
    pub frame: String,
    /// How memory was frozen.
    pub method: String,
    /// How long the program was held up, in nanoseconds.
    pub pause_ns: u64,
    /// Until it was safe on storage, in nanoseconds.
    pub durable_ns: u64,
    /// Bytes of regions.
    pub region_bytes: u64,
    /// Length of its file.
    pub bytes: u64,
}

/// Where a socket of this name is.
pub fn address(socket: &str) -> Result<SocketAddr> {
    SocketAddr::from_abstract_name(socket).context("cannot name a socket")
}

/// Asks the program that has a session called `name` for a snapshot, and to exit after it if `exit`; waits until that is stored.
/// `announce` is told who was asked.
pub fn ask(store: &DirStore, name: &str, exit: bool, announce: impl FnOnce(&str)) -> Result<Stored> {
    let Some(text) = store.holder(name)? else {
        let root = store.root().display();
        return Err(Error::new(Kind::NotFound, format!("no program has a session named {name} in {root}; give the process id of one that is not linked to the library")));
    };
    let holder = Holder::from_text(&text).ok_or_else(|| Error::corrupt(format!("what the session {name} says of itself makes no sense; is it of another version?")))?;
    let here = nix::unistd::gethostname().context("cannot read the host name")?;
    if here.to_string_lossy() != holder.hostname {
        return Err(Error::refused(format!("the session {name} is of {}; run this there", holder.who)));
    }
    let unreached = |e: std::io::Error| Error::io(format!("cannot reach {}; it must be in the same network namespace, and of the same user", holder.who), e);
    let mut stream = UnixStream::connect_addr(&address(&holder.socket)?).map_err(unreached)?;
    let request = if exit { SNAPSHOT_AND_EXIT } else { SNAPSHOT };
    stream.write_all(format!("{request}\n").as_bytes()).map_err(unreached)?;
    announce(&holder.who);
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(unreached)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Stored(stored)) => Ok(stored),
        Ok(Answer::Failed(why)) => Err(Error::refused(format!("{}: {why}", holder.who))),
        Err(_) => Err(Error::new(Kind::TargetGone, format!("{} ended, or closed its session, before it took a snapshot", holder.who))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_read_as_it_was_written() {
        let holder = Holder { who: "process 7 (heat) on here".to_owned(), hostname: "here".to_owned(), socket: "stillframe-1".to_owned() };
        assert_eq!(Holder::from_text(&holder.to_line()), Some(holder));
        assert_eq!(Holder::from_text("process 7\n"), None);
    }
}
