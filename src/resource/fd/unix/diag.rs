//! What sock_diag(7) tells of unix sockets: peers, waiting connections, backlog.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::proc::{self, Pid};
use crate::sys::fd;

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

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301;
/// UDIAG_SHOW_VFS, PEER, ICONS, RQLEN.
const SHOW: u32 = 0x02 | 0x04 | 0x08 | 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

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
    let socket: OwnedFd = fd::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)?;
    fd::send(socket.as_fd(), &request(), &[], &[])?;
    let mut rows = HashMap::new();
    loop {
        let Some(message) = fd::receive(socket.as_fd(), 1 << 16, 0)? else { return Ok(rows) };
        if read(&message.bytes, &mut rows)? {
            return Ok(rows);
        }
    }
}

fn request() -> Vec<u8> {
    let mut raw = Vec::new();
    raw.extend(40u32.to_ne_bytes());
    raw.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    raw.extend(REQUEST_DUMP.to_ne_bytes());
    // Sequence number and sender, which the kernel fills in; then family, protocol and padding.
    raw.extend([0; 8]);
    raw.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    // All states, any inode.
    for word in [!0u32, 0, SHOW, 0, 0] {
        raw.extend(word.to_ne_bytes());
    }
    raw
}

fn word(raw: &[u8], at: usize) -> u32 {
    raw.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn half(raw: &[u8], at: usize) -> u16 {
    raw.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

/// Reads the messages of one datagram; true at the end of the dump.
fn read(mut raw: &[u8], rows: &mut HashMap<u64, Row>) -> io::Result<bool> {
    while raw.len() >= 16 {
        let len = (word(raw, 0) as usize).clamp(16, raw.len());
        match half(raw, 4) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(io::Error::from_raw_os_error((word(raw, 16) as i32).wrapping_neg())),
            _ if len >= 32 => {
                let (inode, row) = row(&raw[16..len]);
                rows.insert(inode, row);
            }
            _ => {}
        }
        raw = &raw[len.next_multiple_of(4).min(raw.len())..];
    }
    Ok(false)
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
