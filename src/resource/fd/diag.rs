//! sock_diag(7): what the kernel knows of sockets beyond their descriptors.

use std::io;
use std::os::fd::AsFd;

use crate::sys::fd;

/// What is asked of the kernel.
#[derive(Debug, Clone, Copy)]
pub enum Request {
    /// All sockets that the query matches.
    Dump,
    /// The end of the one socket that the query names.
    Destroy,
}

const NETLINK_SOCK_DIAG: i32 = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

impl Request {
    /// Message type (SOCK_DIAG_BY_FAMILY, SOCK_DESTROY) and flags (NLM_F_REQUEST with DUMP or ACK).
    fn numbers(self) -> (u16, u16) {
        match self {
            Request::Dump => (20, 0x301),
            Request::Destroy => (21, 0x5),
        }
    }
}

/// Puts a question about our network namespace; `each` gets the answers, without their netlink headers.
pub fn ask(request: Request, query: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let socket = fd::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)?;
    let (kind, flags) = request.numbers();
    let mut raw = ((16 + query.len()) as u32).to_ne_bytes().to_vec();
    raw.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    // Sequence number and sender, which the kernel fills in.
    raw.extend([0; 8]);
    raw.extend(query);
    fd::send(socket.as_fd(), &raw, &[], &[])?;
    while let Some(message) = fd::receive(socket.as_fd(), 1 << 16, 0)? {
        if read(&message.bytes, &mut each)? {
            break;
        }
    }
    Ok(())
}

/// Reads the messages of one datagram; true at the end of the answer.
fn read(mut raw: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    while raw.len() >= 16 {
        let len = (word(raw, 0) as usize).clamp(16, raw.len());
        match half(raw, 4) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return acknowledged(word(raw, 16) as i32),
            _ => each(&raw[16..len]),
        }
        raw = &raw[len.next_multiple_of(4).min(raw.len())..];
    }
    Ok(false)
}

/// An error of number 0 is an acknowledgement.
fn acknowledged(number: i32) -> io::Result<bool> {
    match number {
        0 => Ok(true),
        _ => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
    }
}

/// The 32-bit number at offset `at`; 0 beyond the end.
pub fn word(raw: &[u8], at: usize) -> u32 {
    raw.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// The 16-bit number at offset `at`; 0 beyond the end.
pub fn half(raw: &[u8], at: usize) -> u16 {
    raw.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}
