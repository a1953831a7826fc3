//! Netlink sockets: made anew with their groups; answers under way are lost.

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::options::{self, Choice};
use super::scan::Found;
use super::Capture;
use crate::error::{Context, Result};
use crate::sys::{fd, fd_extra};

/// A netlink socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// SOCK_RAW or SOCK_DGRAM.
    pub kind: i32,
    /// NETLINK_ROUTE …
    pub protocol: i32,
    /// Its address there; 0 if it is not bound.
    pub port: u32,
    /// The groups it listens to, by number.
    pub groups: Vec<u32>,
    /// Options that differ from a fresh socket's.
    pub options: Vec<Choice>,
}

const SOL_NETLINK: i32 = 270;
const ADD_MEMBERSHIP: i32 = 1;
const LIST_MEMBERSHIPS: i32 = 9;

/// Captures a socket of `kind` and `protocol`.
pub fn capture(capture: &mut Capture<'_>, found: &Found, kind: i32, protocol: i32) -> Result<State> {
    let address = fd::local_address(found.fd.as_fd()).map_err(|e| found.failed("ask for the address of", e))?;
    let port = address.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let members = fd_extra::option(found.fd.as_fd(), SOL_NETLINK, LIST_MEMBERSHIPS).unwrap_or_default();
    let groups = (0..members.len() as u32 * 8).filter(|bit| members[*bit as usize / 8] & (1 << (bit % 8)) != 0).map(|bit| bit + 1).collect();
    if fd_extra::ready(found.fd.as_fd(), libc::POLLIN).is_ok_and(|events| events & libc::POLLIN != 0) {
        capture.notes.push(format!("{}: netlink messages that nobody has read are not in the frame", found.place()));
    }
    Ok(State { kind, protocol, port, groups, options: capture.baselines.differences(found.fd.as_fd(), (libc::AF_NETLINK, kind, protocol)) })
}

/// Makes it anew.
pub fn restore(state: &State, notes: &mut Vec<String>) -> Result<OwnedFd> {
    let socket = fd::socket(libc::AF_NETLINK, state.kind, state.protocol).context("cannot make a netlink socket")?;
    options::restore(socket.as_fd(), &state.options, notes);
    if state.port != 0 && fd::bind(socket.as_fd(), &address(state.port)).is_err() {
        notes.push(format!("a netlink socket could not have its port {} again", state.port));
        fd::bind(socket.as_fd(), &address(0)).context("cannot bind a netlink socket")?;
    }
    for group in &state.groups {
        fd::set_sockopt(socket.as_fd(), SOL_NETLINK, ADD_MEMBERSHIP, group).context(format!("cannot join netlink group {group}"))?;
    }
    Ok(socket)
}

fn address(port: u32) -> [u8; 12] {
    let mut raw = [0; 12];
    raw[0..2].copy_from_slice(&(libc::AF_NETLINK as u16).to_ne_bytes());
    raw[4..8].copy_from_slice(&port.to_ne_bytes());
    raw
}
