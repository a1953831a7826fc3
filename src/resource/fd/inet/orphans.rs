//! TCP connections that no process holds any more, and whose port stays taken until they have died down.

use crate::resource::fd::diag::{ask, word, Request};

/// FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK and CLOSING, as bits.
const DYING: u32 = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 11;

/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: std::ops::Range<usize> = 4..52;

/// Where inet_diag_msg has the inode, which is 0 when no process holds the socket.
const INODE: usize = 68;

/// Ends the dying connections that hold `port`; true if there were any.
/// They are nobody's, and what the kernel keeps them for, late packets, meets a listener again that resets them.
pub fn end(family: i32, port: u16) -> bool {
    // An IPv6 socket may share its port with IPv4 connections, and the other way round.
    let others = [family, if family == libc::AF_INET { libc::AF_INET6 } else { libc::AF_INET }];
    others.iter().map(|&family| end_family(family, port)).sum::<usize>() > 0
}

fn end_family(family: i32, port: u16) -> usize {
    let mut dying = Vec::new();
    let listed = ask(Request::Dump, &query(family, DYING, &[0; 48]), |raw| {
        let orphan = word(raw, INODE) == 0 && raw.get(4..6) == Some(&port.to_be_bytes());
        dying.extend(raw.get(ID).filter(|_| orphan).map(<[u8]>::to_vec));
    });
    // A kernel without this leaves the refusal that the port is in use.
    let end = |id: &Vec<u8>| ask(Request::Destroy, &query(family, !0, id), |_| ());
    listed.map_or(0, |()| dying.iter().filter(|id| end(id).is_ok()).count())
}

/// `struct inet_diag_req_v2`.
fn query(family: i32, states: u32, id: &[u8]) -> Vec<u8> {
    [&[family as u8, libc::IPPROTO_TCP as u8, 0, 0][..], &states.to_ne_bytes(), id].concat()
}
