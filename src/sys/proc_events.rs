//! The kernel's process connector: told of every fork before the child runs its first instruction.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{check, fd};

const NETLINK_CONNECTOR: i32 = 11;
/// Both the number of the connector and its multicast group.
const CN_IDX_PROC: u32 = 1;
const CN_VAL_PROC: u32 = 1;
const PROC_CN_MCAST_LISTEN: u32 = 1;
const EVENT_NONE: u32 = 0;
const EVENT_FORK: u32 = 1;
/// Where in a message the kind of the event is, behind the headers of netlink and of the connector; and where its data is.
const WHAT: usize = 36;
const DATA: usize = 52;
/// Bytes of messages that may wait for us.
const QUEUE: i32 = 4 << 20;

/// A new process: not a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The process that made it.
    pub parent: i32,
    /// The process that was made.
    pub child: i32,
}

/// Forks of all processes, as the first pid namespace numbers them.
#[derive(Debug)]
pub struct ForkEvents(OwnedFd);

impl ForkEvents {
    /// Listens from now on; the kernel lets nobody do so outside the first pid and user namespace.
    pub fn listen() -> io::Result<ForkEvents> {
        let socket = fd::socket(libc::AF_NETLINK, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, NETLINK_CONNECTOR)?;
        forks_only(&socket)?;
        // Where that is not allowed, a smaller queue overflows sooner, and says so.
        let _ = fd::set_sockopt(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &QUEUE);
        let address = [(libc::AF_NETLINK as u32).to_ne_bytes(), [0; 4], CN_IDX_PROC.to_ne_bytes()].concat();
        fd::bind(socket.as_fd(), &address)?;
        fd::send(socket.as_fd(), &request(), &[], &[])?;
        let events = ForkEvents(socket);
        events.await_answer()?;
        Ok(events)
    }

    /// The answer is there when the request was sent, unless there is none; forks before it are of no interest.
    fn await_answer(&self) -> io::Result<()> {
        while let Some(message) = fd::receive(self.0.as_fd(), 1024, libc::MSG_DONTWAIT)? {
            if word(&message.bytes, WHAT) == Some(EVENT_NONE) {
                return match word(&message.bytes, DATA) {
                    Some(0) => Ok(()),
                    error => Err(io::Error::from_raw_os_error(error.unwrap_or(libc::EIO as u32) as i32)),
                };
            }
        }
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }

    /// The forks since the last call, in order. ENOBUFS: there were more than could wait.
    pub fn drain(&self) -> io::Result<Vec<Fork>> {
        let mut forks = Vec::new();
        let mut lost = None;
        loop {
            match fd::receive(self.0.as_fd(), 1024, libc::MSG_DONTWAIT) {
                Ok(Some(message)) => forks.extend(fork(&message.bytes)),
                Ok(None) => return lost.map_or(Ok(forks), Err),
                // What still waits is read all the same: it is no news the next time.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => lost = Some(e),
                Err(e) => return Err(e),
            }
        }
    }
}

/// A filter that lets forks and answers through: a machine at work has many other events.
fn forks_only(socket: &OwnedFd) -> io::Result<()> {
    // The filter reads numbers as the network writes them.
    let seen = |kind: u32| u32::from_be_bytes(kind.to_ne_bytes());
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [step(0x20, 0, 0, WHAT as u32), step(0x15, 2, 0, seen(EVENT_FORK)), step(0x15, 1, 0, seen(EVENT_NONE)), step(0x06, 0, 0, 0), step(0x06, 0, 0, u32::MAX)];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the filter and the program it points to are live; the kernel copies both.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const filter).cast(), size_of::<libc::sock_fprog>() as u32) }.into()).map(drop)
}

/// The wish to be told: a netlink header, a connector header, one word.
fn request() -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let half = |half: u16| half.to_ne_bytes().to_vec();
    [words(&[40]), half(libc::NLMSG_DONE as u16), half(0), words(&[0, 0]), words(&[CN_IDX_PROC, CN_VAL_PROC, 0, 0]), half(4), half(0), words(&[PROC_CN_MCAST_LISTEN])].concat()
}

/// The fork that a message tells of, if it is one of a process.
fn fork(bytes: &[u8]) -> Option<Fork> {
    let number = |at| word(bytes, at).map(|word| word as i32);
    let found = Fork { parent: number(DATA + 4)?, child: number(DATA + 12)? };
    (word(bytes, WHAT) == Some(EVENT_FORK) && found.parent != found.child).then_some(found)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the kernel lays it out.
    fn message(what: u32, data: [u32; 4]) -> Vec<u8> {
        [vec![0; WHAT], what.to_ne_bytes().to_vec(), vec![0; 12], data.iter().flat_map(|word| word.to_ne_bytes()).collect()].concat()
    }

    #[test]
    fn processes_are_told_from_threads_and_from_other_news() {
        assert_eq!(fork(&message(EVENT_FORK, [11, 10, 13, 12])), Some(Fork { parent: 10, child: 12 }));
        assert_eq!(fork(&message(EVENT_FORK, [11, 10, 12, 10])), None);
        assert_eq!(fork(&message(2, [11, 10, 13, 12])), None);
        assert_eq!(fork(&message(EVENT_FORK, [11, 10, 13, 12])[..60]), None);
    }

    #[test]
    fn a_request_has_the_length_it_states() {
        assert_eq!(request().len(), 40);
    }
}
