//! File locks: POSIX records belong to a table, flock, OFD locks and leases to a description.

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::info::Info;
use super::scan::Scan;
use crate::error::{Error, Result};
use crate::sys::fd_extra::{fcntl, fcntl_with};
use crate::tracee::{blank::Blank, Remote};

/// Which call makes a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// fcntl(F_SETLK).
    Posix,
    /// fcntl(F_OFD_SETLK).
    Description,
    /// flock(2).
    Whole,
    /// fcntl(F_SETLEASE).
    Lease,
}

/// One lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// What made it.
    pub class: Class,
    /// Exclusive, as against shared.
    pub write: bool,
    /// First byte.
    pub start: i64,
    /// Number of bytes; 0 up to the end of the file.
    pub len: i64,
}

/// A record lock, with a descriptor of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The descriptor.
    pub fd: i32,
    /// The lock.
    #[serde(flatten)]
    pub lock: Lock,
}

fn parse(row: &str) -> Option<Lock> {
    let words: Vec<&str> = row.split_whitespace().collect();
    let class = match *words.get(1)? {
        "POSIX" => Class::Posix,
        "OFDLCK" => Class::Description,
        "FLOCK" => Class::Whole,
        "LEASE" => Class::Lease,
        _ => return None,
    };
    let start = words.get(6)?.parse::<i64>().ok()?;
    let len = match *words.get(7)? {
        "EOF" => 0,
        end => end.parse::<i64>().ok()? - start + 1,
    };
    Some(Lock { class, write: *words.get(3)? == "WRITE", start, len })
}

/// The locks that belong to a description.
pub fn of_description(info: &Info) -> Vec<Lock> {
    info.rows("lock").filter_map(parse).filter(|lock| lock.class != Class::Posix).collect()
}

/// The record locks of a table.
pub fn of_table(scan: &Scan, table: usize) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let mut places = std::collections::HashSet::new();
    for seen in &scan.tables[table] {
        for lock in seen.info.rows("lock").filter_map(parse).filter(|lock| lock.class == Class::Posix) {
            // Duplicates of a descriptor all show the lock.
            if places.insert((seen.found, lock.start, lock.len)) {
                records.push(Record { fd: seen.number, lock });
            }
        }
    }
    records
}

impl Lock {
    fn kind(&self) -> i32 {
        if self.write {
            libc::F_WRLCK
        } else {
            libc::F_RDLCK
        }
    }

    fn as_flock(&self) -> libc::flock {
        libc::flock { l_type: self.kind() as i16, l_whence: libc::SEEK_SET as i16, l_start: self.start, l_len: self.len, l_pid: 0 }
    }

    fn failed(&self, path: &str, e: std::io::Error) -> Error {
        match e.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Error::refused(format!("{path} is locked by another process (see /proc/locks), and the frame holds a lock on it: end that process first")),
            _ => Error::io(format!("cannot lock {path}"), e),
        }
    }
}

fn path_of(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_or_else(|_| "a file".to_owned(), |path| path.display().to_string())
}

/// Locks through a description; leases are left for `connect`.
pub fn restore(locks: &[Lock], fd: &OwnedFd) -> Result<()> {
    for lock in locks {
        let done = match lock.class {
            Class::Description => fcntl_with(fd.as_fd(), libc::F_OFD_SETLK, &mut lock.as_flock()).map(drop),
            Class::Whole => flock(fd, lock.write),
            Class::Posix | Class::Lease => Ok(()),
        };
        done.map_err(|e| lock.failed(&path_of(fd), e))?;
    }
    Ok(())
}

fn flock(fd: &OwnedFd, write: bool) -> std::io::Result<()> {
    crate::sys::fd_extra::flock(fd.as_fd(), if write { libc::LOCK_EX } else { libc::LOCK_SH })
}

/// Takes a lease again; the description is open in nobody's hands but the tree's and ours.
pub fn lease(lock: &Lock, fd: &OwnedFd) -> Result<()> {
    fcntl(fd.as_fd(), libc::F_SETLEASE, lock.kind()).map(drop).map_err(|e| lock.failed(&path_of(fd), e))
}

/// Makes the holder of a table lock its records.
pub fn connect(records: &[Record], blank: &mut Blank) -> Result<()> {
    for Record { fd, lock } in records {
        let raw = lock.as_flock();
        let mut bytes = [0u8; 32];
        bytes[0..2].copy_from_slice(&raw.l_type.to_ne_bytes());
        bytes[2..4].copy_from_slice(&raw.l_whence.to_ne_bytes());
        bytes[8..16].copy_from_slice(&raw.l_start.to_ne_bytes());
        bytes[16..24].copy_from_slice(&raw.l_len.to_ne_bytes());
        let at = blank.put(&bytes)?;
        let pid = blank.pid();
        let done = blank.call(libc::SYS_fcntl, [*fd as u64, libc::F_SETLK as u64, at, 0, 0, 0]);
        done.map_err(|e| lock.failed(&format!("the file of pid {pid} fd {fd}"), e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_fdinfo() {
        assert_eq!(parse("1: FLOCK  ADVISORY  READ 25997 fe:00:10010659 0 EOF"), Some(Lock { class: Class::Whole, write: false, start: 0, len: 0 }));
        assert_eq!(parse("2: POSIX  ADVISORY  WRITE 25997 fe:00:10010659 5 14"), Some(Lock { class: Class::Posix, write: true, start: 5, len: 10 }));
    }
}
