//! TCP, UDP and ping sockets over IPv4 and IPv6. Listeners and datagram sockets come back; connections come back reset.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::options::{self, Choice};
use super::scan::Found;
use super::Capture;
use crate::error::{Context, Error, Result};
use crate::proc;
use crate::sys::{fd, fd_extra};

mod orphans;

/// What a socket was doing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Neither listening nor connected.
    Idle,
    /// Listening.
    Listening {
        /// As given to listen(2).
        backlog: i32,
    },
    /// A datagram socket with a peer.
    Talking {
        /// The peer.
        peer: SocketAddr,
    },
    /// A TCP connection, whole, half open or over: comes back reset.
    Reset,
}

/// An internet socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// AF_INET or AF_INET6.
    pub family: i32,
    /// SOCK_STREAM or SOCK_DGRAM.
    pub kind: i32,
    /// IPPROTO_*.
    pub protocol: i32,
    /// Where it is bound; `None` if it is not, or not any more.
    pub local: Option<SocketAddr>,
    /// What it was doing.
    pub phase: Phase,
    /// Options that differ from a fresh socket's.
    pub options: Vec<Choice>,
}

const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

/// Captures a socket.
pub fn capture(capture: &mut Capture<'_>, found: &Found, family: i32, kind: i32, protocol: i32) -> Result<State> {
    let socket = found.fd.as_fd();
    let phase = match (kind, protocol) {
        (libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) => stream_phase(capture, found)?,
        (libc::SOCK_DGRAM, _) => datagram_phase(capture, found),
        (libc::SOCK_RAW, _) => return Err(found.refused("a raw IP socket")),
        _ => return Err(found.refused(&format!("a socket of IP protocol {protocol}"))),
    };
    let local = fd::local_address(socket).map_err(|e| found.failed("ask for the address of", e))?;
    let bound = parse(&local).filter(|local| local.port() != 0 && !matches!(phase, Phase::Reset));
    Ok(State { family, kind, protocol, local: bound, options: capture.baselines.differences(socket, (family, kind, protocol)), phase })
}

fn stream_phase(capture: &Capture<'_>, found: &Found) -> Result<Phase> {
    let info = fd_extra::option(found.fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO).map_err(|e| found.failed("examine", e))?;
    let state = info.first().copied().unwrap_or(CLOSE);
    let word = |at: usize| info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    // For a listener, tcpi_sacked is its backlog.
    const SACKED: usize = 28;
    let over = || fd_extra::ready(found.fd.as_fd(), libc::POLLRDHUP).is_ok_and(|events| events & libc::POLLRDHUP != 0);
    match state {
        LISTEN => Ok(Phase::Listening { backlog: word(SACKED) }),
        CLOSE if over() => Ok(Phase::Reset),
        CLOSE => Ok(Phase::Idle),
        _ if capture.options.tcp_close => Ok(Phase::Reset),
        _ => {
            let peer = fd::peer_address(found.fd.as_fd()).ok().and_then(|raw| parse(&raw)).map_or_else(String::new, |peer| format!(" to {peer}"));
            Err(Error::refused(format!("{} is a TCP connection{peer}; close it, or take the frame with --tcp close to have it come back reset", found.place())))
        }
    }
}

fn datagram_phase(capture: &mut Capture<'_>, found: &Found) -> Phase {
    if fd_extra::ready(found.fd.as_fd(), libc::POLLIN).is_ok_and(|events| events & libc::POLLIN != 0) {
        capture.notes.push(format!("{}: datagrams that nobody has received are not in the frame", found.place()));
    }
    match fd::peer_address(found.fd.as_fd()).ok().and_then(|raw| parse(&raw)) {
        Some(peer) => Phase::Talking { peer },
        None => Phase::Idle,
    }
}

fn parse(raw: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*raw.get(2..)?.first_chunk()?);
    match i32::from(u16::from_ne_bytes(*raw.first_chunk()?)) {
        libc::AF_INET => Some(SocketAddrV4::new(Ipv4Addr::from(*raw.get(4..)?.first_chunk::<4>()?), port).into()),
        libc::AF_INET6 => {
            let scope = u32::from_ne_bytes(*raw.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(*raw.get(8..)?.first_chunk::<16>()?), port, 0, scope).into())
        }
        _ => None,
    }
}

fn raw(address: &SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut raw = [&(family as u16).to_ne_bytes()[..], &address.port().to_be_bytes()[..]].concat();
    match address {
        SocketAddr::V4(v4) => raw.extend(v4.ip().octets().into_iter().chain([0; 8])),
        SocketAddr::V6(v6) => raw.extend([0; 4].into_iter().chain(v6.ip().octets()).chain(v6.scope_id().to_ne_bytes())),
    }
    raw
}

/// Makes it anew.
pub fn restore(state: &State, notes: &mut Vec<String>) -> Result<OwnedFd> {
    if let Phase::Reset = state.phase {
        let socket = reset_connection(state).map_err(|e| Error::io("cannot make a reset TCP connection (is the loopback interface up?)", e))?;
        // What does not apply to a dead connection no longer matters.
        options::restore(socket.as_fd(), &state.options, &mut Vec::new());
        return Ok(socket);
    }
    let socket = fd::socket(state.family, state.kind, state.protocol).context("cannot make a socket")?;
    options::restore(socket.as_fd(), &state.options, notes);
    take_place(socket.as_fd(), state)?;
    if let Phase::Talking { peer } = &state.phase {
        if let Err(e) = fd::connect(socket.as_fd(), &raw(peer)) {
            notes.push(format!("a datagram socket could not be connected to {peer} again: {e}"));
        }
    }
    Ok(socket)
}

/// Binds and listens; what lingers of the first instance's connections is no hindrance.
fn take_place(socket: BorrowedFd<'_>, state: &State) -> Result<()> {
    let Some(local) = &state.local else { return listen(socket, state).map_err(|e| in_use(state, e)) };
    let place = || fd::bind(socket, &raw(local)).and_then(|()| listen(socket, state));
    if state.kind != libc::SOCK_STREAM {
        return place().map_err(|e| in_use(state, e));
    }
    let reuse = fd::sockopt::<i32>(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR).context("cannot examine a socket")?;
    fd::set_sockopt(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32).context("cannot prepare a socket")?;
    // What lingers of a living process's connections may still have data to deliver.
    let ends = |e: &std::io::Error| e.raw_os_error() == Some(libc::EADDRINUSE) && holder("tcp", local.port()).is_none() && orphans::end(state.family, local.port());
    place().or_else(|e| if ends(&e) { place() } else { Err(e) }).map_err(|e| in_use(state, e))?;
    fd::set_sockopt(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &reuse).context("cannot prepare a socket")
}

fn listen(socket: BorrowedFd<'_>, state: &State) -> std::io::Result<()> {
    match state.phase {
        Phase::Listening { backlog } => fd_extra::listen(socket, backlog),
        _ => Ok(()),
    }
}

fn in_use(state: &State, e: std::io::Error) -> Error {
    let Some(local) = &state.local else { return Error::io("cannot restore a socket", e) };
    let name = if state.kind == libc::SOCK_STREAM { "tcp" } else { "udp" };
    match e.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let holder = holder(name, local.port()).unwrap_or_else(|| "another process".to_owned());
            Error::refused(format!("{name} address {local} is in use by {holder}; end that first, or restore with --isolate"))
        }
        Some(libc::EADDRNOTAVAIL) => Error::refused(format!("{name} address {local} does not belong to this host; add it (ip address add), or restore where it is")),
        _ => Error::io(format!("cannot bind to {name} address {local}"), e),
    }
}

/// Who has local port `port`, by the tables in /proc/net.
fn holder(name: &str, port: u16) -> Option<String> {
    let wanted = format!(":{port:04X}");
    [name.to_owned(), format!("{name}6")].iter().find_map(|table| {
        let text = proc::text(&std::path::Path::new("/proc/net").join(table)).ok()?;
        text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|row| row.get(1).is_some_and(|local| local.ends_with(&wanted))).find_map(|row| holder_of(row.get(9)?))
    })
}

/// Which process has a socket of this inode open.
pub fn holder_of(inode: &str) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    proc::numbers("/proc".as_ref()).ok()?.into_iter().find_map(|pid| {
        let fds = std::fs::read_dir(proc::path(pid, "fd")).ok()?;
        let held = fds.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link.to_str() == Some(&wanted)));
        held.then(|| format!("pid {pid} ({})", proc::text(&proc::path(pid, "comm")).unwrap_or_default().trim()))
    })
}

/// A connection whose peer has reset it: reading says ECONNRESET, polling says that it hung up.
fn reset_connection(state: &State) -> std::io::Result<OwnedFd> {
    let loopback = if state.family == libc::AF_INET6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    connect_and_reset(state, loopback).or_else(|e| match state.family {
        // A host without IPv6 addresses can still speak IPv4 on such a socket.
        libc::AF_INET6 => connect_and_reset(state, IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped())),
        _ => Err(e),
    })
}

fn connect_and_reset(state: &State, address: IpAddr) -> std::io::Result<OwnedFd> {
    let listener = fd::socket(state.family, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    fd::bind(listener.as_fd(), &raw(&SocketAddr::new(address, 0)))?;
    fd_extra::listen(listener.as_fd(), 1)?;
    let socket = fd::socket(state.family, libc::SOCK_STREAM, libc::IPPROTO_TCP)?;
    fd::connect(socket.as_fd(), &fd::local_address(listener.as_fd())?)?;
    let peer = fd_extra::accept(listener.as_fd())?;
    fd::set_sockopt(peer.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    drop(peer);
    Ok(socket)
}
