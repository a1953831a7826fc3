//! What sock_diag(7) tells of unix sockets: peers, waiting connections, backlog.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::proc::{self, Pid};
use crate::resource::fd::diag::{self, half, word, Request};

/// One socket, by the kernel's account.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// Inode of the peer; 0 if that is gone or not accepted yet.
    pub peer: u64,
    /// For a listener: inodes of the sockets that wait to be accepted.
    pub waiting: Vec<u64>,
    /// For a listener: its backlog.
    pub backlog: i32,
    /// Inode of the file it is bound to.
    pub file: Option<u64>,
    /// Bit 0: receives no more; bit 1: sends no more.
    pub shutdown: u8,
    /// TCP_LISTEN and so on.
    pub state: u8,
}

/// A listener's state.
pub const LISTEN: u8 = 10;
/// Connected.
pub const ESTABLISHED: u8 = 1;

/// UDIAG_SHOW_VFS, PEER, ICONS, RQLEN.
const SHOW: u32 = 0x02 | 0x04 | 0x08 | 0x10;

/// All unix sockets of the network namespace of `pid`, by inode.
pub fn all(pid: Pid) -> io::Result<HashMap<u64, Row>> {
    let theirs = File::open(proc::path(pid, "ns/net"))?;
    let id = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
    if id("self")? == id(&pid.to_string())? {
        return dump();
    }
    // A namespace is a thread's: one of its own goes there and back nowhere.
    let journey = std::thread::spawn(move || {
        nix::sched::setns(theirs.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)?;
        dump()
    });
    journey.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the other network namespace died")))
}

fn dump() -> io::Result<HashMap<u64, Row>> {
    let mut query = vec![libc::AF_UNIX as u8, 0, 0, 0];
    // All states, any inode.
    for word in [!0u32, 0, SHOW, 0, 0] {
        query.extend(word.to_ne_bytes());
    }
    let mut rows = HashMap::new();
    diag::ask(Request::Dump, &query, |raw| rows.extend((raw.len() >= 16).then(|| row(raw))))?;
    Ok(rows)
}

fn row(raw: &[u8]) -> (u64, Row) {
    let mut row = Row { state: raw[2], ..Row::default() };
    let mut rest = &raw[16..];
    while rest.len() >= 4 {
        let len = usize::from(half(rest, 0)).clamp(4, rest.len());
        let value = &rest[4..len];
        match half(rest, 2) {
            1 => row.file = Some(word(value, 0).into()),
            2 => row.peer = word(value, 0).into(),
            3 => row.waiting = (0..value.len() / 4).map(|i| word(value, 4 * i).into()).collect(),
            4 => row.backlog = word(value, 4) as i32,
            6 => row.shutdown = value.first().copied().unwrap_or(0),
            _ => {}
        }
        rest = &rest[len.next_multiple_of(4).min(rest.len())..];
    }
    (word(raw, 4).into(), row)
}
