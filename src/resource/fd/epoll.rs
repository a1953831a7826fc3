//! epoll sets: which files they watch, under which numbers.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use serde::{Deserialize, Serialize};

use super::info::{hex_word, word};
use super::scan::Found;
use super::{Capture, DescriptionId, Descriptors};
use crate::error::{Context, Error, Result};
use crate::proc::Pid;
use crate::sys::kcmp;
use crate::tracee::{blank::Blank, Remote, RemoteExt};

/// One watched file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// The number it was added under, which the set goes by.
    pub fd: i32,
    /// The file.
    pub description: DescriptionId,
    /// EPOLLIN …
    pub events: u32,
    /// What the program is told.
    pub data: u64,
}

/// An epoll set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// What it watches.
    pub entries: Vec<Entry>,
}

/// A row of fdinfo.
struct Row {
    fd: i32,
    events: u32,
    data: u64,
    inode: u64,
    /// How many rows with the same number come before it.
    nth: u32,
}

/// Captures a set. The kernel tells number, inode and device of each file; the file itself is told by kcmp.
pub fn capture(capture: &Capture<'_>, found: &Found) -> Result<State> {
    let mut rows = rows(found).ok_or_else(|| found.refused("an epoll set whose entries this kernel does not show"))?;
    let mut known = std::collections::HashMap::new();
    for row in &mut rows {
        let count = known.entry(row.fd).or_insert(0u32);
        row.nth = *count;
        *count += 1;
    }
    let tables = tables_with(capture, found);
    let mut entries = Vec::new();
    for row in rows {
        let description = target(capture, found, &row, &tables)?;
        entries.push(Entry { fd: row.fd, description, events: row.events, data: row.data });
    }
    Ok(State { entries })
}

fn rows(found: &Found) -> Option<Vec<Row>> {
    let row = |text: &str| {
        let fd = text.split_whitespace().next()?.parse().ok()?;
        Some(Row { fd, events: hex_word(text, "events")? as u32, data: hex_word(text, "data")?, inode: u64::from_str_radix(word(text, "ino")?, 16).ok()?, nth: 0 })
    };
    found.info.rows("tfd").map(row).collect()
}

/// The tables in which the set has a number: there its entries' numbers most likely mean something.
fn tables_with(capture: &Capture<'_>, found: &Found) -> Vec<usize> {
    let holds = |&table: &usize| capture.scan.tables[table].iter().any(|seen| std::ptr::eq(&capture.scan.found[seen.found], found));
    (0..capture.scan.tables.len()).filter(holds).collect()
}

fn target(capture: &Capture<'_>, found: &Found, row: &Row, tables: &[usize]) -> Result<DescriptionId> {
    for candidate in tables.iter().filter_map(|&table| capture.scan.at(table, row.fd)) {
        if is_target(capture, found, row, candidate)? {
            return Ok(candidate);
        }
    }
    for candidate in 0..capture.scan.found.len() {
        if is_target(capture, found, row, candidate)? {
            return Ok(candidate);
        }
    }
    Err(Error::refused(format!("{} is an epoll set that watches a file under number {}, which no process of the tree holds any more; remove it from the set (EPOLL_CTL_DEL) before it is closed", found.place(), row.fd)))
}

fn is_target(capture: &Capture<'_>, found: &Found, row: &Row, candidate: DescriptionId) -> Result<bool> {
    let file = &capture.scan.found[candidate];
    if file.stat.st_ino != row.inode {
        return Ok(false);
    }
    // A socket's inode has one description only.
    if file.stat.st_mode & libc::S_IFMT == libc::S_IFSOCK {
        return Ok(true);
    }
    let own = std::process::id() as Pid;
    kcmp::is_epoll_target(own, file.fd.as_raw_fd(), own, found.fd.as_raw_fd(), row.fd, row.nth).map_err(|e| found.failed("look into", e))
}

/// Makes an empty set.
pub fn restore() -> Result<OwnedFd> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll set")?.0)
}

/// The table whose holder is to add the entries of set `id`: one where most of their numbers still mean the same.
pub fn home(descriptors: &Descriptors, id: DescriptionId, state: &State) -> Option<usize> {
    let fit = |table: &usize| {
        let slots: HashSet<_> = descriptors.tables[*table].slots.iter().map(|slot| (slot.fd, slot.description)).collect();
        state.entries.iter().filter(|entry| slots.contains(&(entry.fd, entry.description))).count()
    };
    let holds = |table: &usize| descriptors.tables[*table].slots.iter().any(|slot| slot.description == id);
    // The first of equals, so that it is the parent rather than a child.
    (0..descriptors.tables.len()).rev().filter(holds).max_by_key(fit)
}

/// Adds the entries of the set that `blank` holds as `epfd`. `local` gives our own descriptor of a description.
pub fn connect<'a>(state: &State, epfd: i32, slots: &std::collections::HashMap<i32, DescriptionId>, blank: &mut Blank, local: impl Fn(DescriptionId) -> Result<&'a OwnedFd>) -> Result<()> {
    for entry in &state.entries {
        match slots.get(&entry.fd) {
            Some(&description) if description == entry.description => add(entry, epfd, blank)?,
            taken => under_another_hat(entry, epfd, taken.is_some(), blank, local(entry.description)?)?,
        }
    }
    Ok(())
}

fn add(entry: &Entry, epfd: i32, blank: &mut Blank) -> Result<()> {
    let at = blank.put(&[&entry.events.to_ne_bytes()[..], &entry.data.to_ne_bytes()[..]].concat())?;
    let args = [epfd as u64, libc::EPOLL_CTL_ADD as u64, entry.fd as u64, at, 0, 0];
    blank.must(&format!("make epoll set {epfd} watch fd {}", entry.fd), libc::SYS_epoll_ctl, args).map(drop)
}

/// The number means something else by now, or nothing: the file takes it for the moment of the call.
fn under_another_hat(entry: &Entry, epfd: i32, taken: bool, blank: &mut Blank, file: &OwnedFd) -> Result<()> {
    use std::os::fd::AsFd;
    let number = entry.fd as u64;
    let cloexec = libc::O_CLOEXEC as u64;
    let aside = if taken { Some(keep_aside(number, blank)?) } else { None };
    let guest = blank.borrow(file.as_fd())?;
    if guest != number {
        blank.must("place a descriptor", libc::SYS_dup3, [guest, number, cloexec, 0, 0, 0])?;
        blank.must("close a descriptor", libc::SYS_close, [guest, 0, 0, 0, 0, 0])?;
    }
    let added = add(entry, epfd, blank);
    match aside {
        Some((aside, flags)) => {
            let cloexec = if flags & libc::FD_CLOEXEC as u64 != 0 { cloexec } else { 0 };
            blank.must("put a descriptor back", libc::SYS_dup3, [aside, number, cloexec, 0, 0, 0])?;
            blank.must("close a descriptor", libc::SYS_close, [aside, 0, 0, 0, 0, 0])?;
        }
        None => drop(blank.must("close a descriptor", libc::SYS_close, [number, 0, 0, 0, 0, 0])?),
    }
    added
}

fn keep_aside(number: u64, blank: &mut Blank) -> Result<(u64, u64)> {
    let flags = blank.call(libc::SYS_fcntl, [number, libc::F_GETFD as u64, 0, 0, 0, 0]).context("cannot read a descriptor's flags")?;
    let aside = blank.must("keep a descriptor aside", libc::SYS_fcntl, [number, libc::F_DUPFD_CLOEXEC as u64, 0, 0, 0, 0])?;
    Ok((aside, flags))
}
