//! Socket options: those that differ from a fresh socket's.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use serde::{Deserialize, Serialize};

use crate::sys::{fd, fd_extra};

/// A socket option.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Choice {
    /// SOL_SOCKET, IPPROTO_TCP …
    pub level: i32,
    /// Its number there.
    pub name: i32,
    /// Its value, as the kernel gives it.
    #[serde(with = "crate::resource::blob")]
    pub value: Vec<u8>,
}

/// Family, type and protocol.
pub type Sort = (i32, i32, i32);

/// Values of fresh sockets.
#[derive(Debug, Default)]
pub struct Baselines(HashMap<Sort, Vec<Option<Vec<u8>>>>);

/// SOL_SOCKET: all options that are a property of the socket and can be both read and set.
const COMMON: [i32; 21] = [2, 5, 6, 9, 10, 11, 12, 13, 15, 16, 18, 20, 21, 25, 29, 34, 36, 37, 42, 60, 76];
/// From IP_TOS up to IP_LOCAL_PORT_RANGE.
const IP: [i32; 22] = [1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 19, 20, 21, 22, 24, 32, 33, 34, 49, 50, 51, 18];
const IPV6: [i32; 18] = [26, 16, 17, 18, 19, 23, 25, 29, 49, 51, 62, 66, 67, 70, 73, 74, 75, 78];
/// From TCP_NODELAY up to TCP_INQ.
const TCP: [i32; 15] = [1, 3, 4, 5, 6, 7, 8, 9, 13, 18, 23, 25, 27, 30, 36];
const UDP: [i32; 5] = [1, 101, 102, 103, 104];

const SO_BUF_LOCK: i32 = 72;
const SNDBUF_LOCKED: i32 = 1;
const RCVBUF_LOCKED: i32 = 2;

fn names(sort: Sort) -> Vec<(i32, i32)> {
    let level = |level: i32, names: &[i32]| names.iter().map(|&name| (level, name)).collect::<Vec<_>>();
    let mut all = level(libc::SOL_SOCKET, &COMMON);
    if matches!(sort.0, libc::AF_INET | libc::AF_INET6) {
        all.extend(level(libc::IPPROTO_IP, &IP));
        match (sort.1, sort.2) {
            (libc::SOCK_STREAM, _) => all.extend(level(libc::IPPROTO_TCP, &TCP)),
            (_, libc::IPPROTO_UDP) => all.extend(level(libc::IPPROTO_UDP, &UDP)),
            _ => {}
        }
    }
    if sort.0 == libc::AF_INET6 {
        all.extend(level(libc::IPPROTO_IPV6, &IPV6));
    }
    all
}

impl Baselines {
    /// The options of `socket` that differ from a fresh socket's.
    pub fn differences(&mut self, socket: BorrowedFd<'_>, sort: Sort) -> Vec<Choice> {
        let fresh = self.0.entry(sort).or_insert_with(|| {
            let fresh = fd::socket(sort.0, sort.1, sort.2).ok();
            names(sort).into_iter().map(|(level, name)| fd_extra::option(fresh.as_ref()?.as_fd(), level, name).ok()).collect()
        });
        let mut choices = Vec::new();
        for ((level, name), fresh) in names(sort).into_iter().zip(fresh) {
            match fd_extra::option(socket, level, name) {
                Ok(value) if fresh.as_ref() != Some(&value) => choices.push(Choice { level, name, value }),
                _ => {}
            }
        }
        choices.extend(buffers(socket));
        choices
    }
}

/// Buffer sizes that the program chose; others are the kernel's to tune.
fn buffers(socket: BorrowedFd<'_>) -> Vec<Choice> {
    let chosen = fd::sockopt::<i32>(socket, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or(0);
    let both = [(SNDBUF_LOCKED, libc::SO_SNDBUF), (RCVBUF_LOCKED, libc::SO_RCVBUF)];
    let wanted = both.into_iter().filter(|(bit, _)| chosen & bit != 0);
    wanted.filter_map(|(_, name)| Some(Choice { level: libc::SOL_SOCKET, name, value: fd_extra::option(socket, libc::SOL_SOCKET, name).ok()? })).collect()
}

/// Sets options; those refused become notes.
pub fn restore(socket: BorrowedFd<'_>, choices: &[Choice], notes: &mut Vec<String>) {
    for choice in choices {
        if let Err(e) = set(socket, choice) {
            notes.push(format!("socket option {}:{} could not be set: {e}", choice.level, choice.name));
        }
    }
}

fn set(socket: BorrowedFd<'_>, choice: &Choice) -> std::io::Result<()> {
    let force = match (choice.level, choice.name) {
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => libc::SO_SNDBUFFORCE,
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => libc::SO_RCVBUFFORCE,
        _ => return fd_extra::set_option(socket, choice.level, choice.name, &choice.value),
    };
    // The kernel doubles what it is told and tells the double.
    let half = choice.value.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes) / 2);
    fd::set_sockopt(socket, libc::SOL_SOCKET, force, &half).or_else(|_| fd::set_sockopt(socket, libc::SOL_SOCKET, choice.name, &half))
}
