//! Descriptor calls that nix lacks or only offers typed.

use std::io;
use std::mem::{size_of, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::check;

/// An ioctl whose argument is a plain number.
pub fn ioctl_number(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: callers use this only for requests that take a number; the kernel checks anything else as a user address of ours.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) }.into()).map(|n| n as i32)
}

/// Marker for plain-old-data kernel structs: any bit pattern is valid and there is no pointer to ours inside.
///
/// # Safety
/// The type must be valid for every bit pattern.
pub unsafe trait Plain: Copy {}
macro_rules! plain { ($($t:ty),* $(,)?) => { $(
    // SAFETY: integers, or C structs of integers: every bit pattern is valid.
    unsafe impl Plain for $t {}
)* } }
plain!(i32, u32, i64, u64, u8, libc::winsize, libc::termios, libc::termios2, libc::linger, libc::timeval, libc::itimerspec, libc::ucred, [u8; 256], [u8; 16], [u8; 1024], libc::tcp_info, InterfaceFlags);

/// `struct ifreq` as SIOCSIFFLAGS takes it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct InterfaceFlags {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

impl InterfaceFlags {
    /// The request to give interface `name` these IFF_* flags.
    pub fn new(name: &str, flags: i16) -> InterfaceFlags {
        let mut request = InterfaceFlags { name: [0; 16], flags, rest: [0; 22] };
        request.name.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
        request
    }
}

/// An ioctl that fills in a struct.
pub fn ioctl_get<T: Plain>(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the request writes at most a T; zeroed plain data is initialised.
    unsafe {
        check(libc::ioctl(fd.as_raw_fd(), request, value.as_mut_ptr()).into())?;
        Ok(value.assume_init())
    }
}

/// An ioctl that reads a struct.
pub fn ioctl_set<T: Plain>(fd: BorrowedFd<'_>, request: libc::c_ulong, value: &T) -> io::Result<i32> {
    // SAFETY: the request reads a T, and `value` is live.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, value as *const T) }.into()).map(|n| n as i32)
}

/// An ioctl that reads a struct and answers in it.
pub fn ioctl_exchange<T: Plain>(fd: BorrowedFd<'_>, request: libc::c_ulong, value: &mut T) -> io::Result<i32> {
    // SAFETY: the request reads and writes a T, and `value` is live and ours alone.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, value as *mut T) }.into()).map(|n| n as i32)
}

/// A socket option of fixed size.
pub fn sockopt<T: Plain>(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes; zeroed plain data is initialised.
    unsafe {
        check(libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &mut len).into())?;
        Ok(value.assume_init())
    }
}

/// Sets a socket option of fixed size.
pub fn set_sockopt<T: Plain>(fd: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` is live and of the size stated.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (value as *const T).cast(), size_of::<T>() as libc::socklen_t) }.into()).map(drop)
}

/// A socket address as raw bytes (`sockaddr` of any family).
pub type Address = Vec<u8>;

fn address(fd: BorrowedFd<'_>, call: unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32) -> io::Result<Address> {
    let mut raw = vec![0u8; 128];
    let mut len = raw.len() as libc::socklen_t;
    // SAFETY: the buffer is live and of the length stated.
    check(unsafe { call(fd.as_raw_fd(), raw.as_mut_ptr().cast(), &mut len) }.into())?;
    raw.truncate(len as usize);
    Ok(raw)
}

/// The address a socket is bound to.
pub fn local_address(fd: BorrowedFd<'_>) -> io::Result<Address> {
    address(fd, libc::getsockname)
}

/// The address a socket is connected to.
pub fn peer_address(fd: BorrowedFd<'_>) -> io::Result<Address> {
    address(fd, libc::getpeername)
}

/// Binds a socket to a raw address.
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    // SAFETY: the slice is live and of the length stated.
    check(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t) }.into()).map(drop)
}

/// Connects a socket to a raw address.
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    // SAFETY: the slice is live and of the length stated.
    check(unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t) }.into()).map(drop)
}

/// Makes a socket.
pub fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; on success the descriptor is new and ours.
    unsafe { check(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol).into()).map(|fd| OwnedFd::from_raw_fd(fd as RawFd)) }
}

/// One message of a socket's queue: its bytes, the descriptors passed with it, and the sender's address.
pub struct Message {
    /// Payload.
    pub bytes: Vec<u8>,
    /// Passed descriptors, now duplicates of ours.
    pub files: Vec<OwnedFd>,
    /// Raw address of the sender; empty if unnamed.
    pub from: Address,
}

/// Receives one message of at most `limit` bytes; `None` when the queue is empty (flags usually MSG_PEEK | MSG_DONTWAIT).
pub fn receive(fd: BorrowedFd<'_>, limit: usize, flags: i32) -> io::Result<Option<Message>> {
    let mut bytes = vec![0u8; limit];
    let mut control = vec![0u64; 512];
    let mut from = vec![0u8; 128];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr points at live buffers of the stated lengths; control messages are walked with the libc macros within the length
    // the kernel returned, and SCM_RIGHTS descriptors are new and ours.
    unsafe {
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_name = from.as_mut_ptr().cast();
        msg.msg_namelen = from.len() as u32;
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = control.len() * 8;
        let n = match check(libc::recvmsg(fd.as_raw_fd(), &mut msg, flags | libc::MSG_CMSG_CLOEXEC) as i64) {
            Ok(n) => n as usize,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        };
        bytes.truncate(n);
        from.truncate((msg.msg_namelen as usize).min(128));
        Ok(Some(Message { bytes, files: passed(&msg), from }))
    }
}

/// # Safety
/// `msg` must have been filled in by recvmsg, its control buffer still live.
unsafe fn passed(msg: &libc::msghdr) -> Vec<OwnedFd> {
    let mut files = Vec::new();
    // SAFETY: the walk stays inside the control buffer by the macros' contract; each descriptor was installed for us by the kernel.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(msg);
        while let Some(header) = cmsg.as_ref() {
            if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS {
                let count = (header.cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
                files.extend((0..count).map(|i| OwnedFd::from_raw_fd(data.add(i).read_unaligned())));
            }
            cmsg = libc::CMSG_NXTHDR(msg, cmsg);
        }
    }
    files
}

/// Sends one message with descriptors to `to` (empty: the connected peer).
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], files: &[BorrowedFd<'_>], to: &[u8]) -> io::Result<usize> {
    let mut control = vec![0u64; 8 + files.len()];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    // SAFETY: msghdr points at live buffers; the control buffer has room for one header and all descriptors.
    unsafe {
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        if !to.is_empty() {
            msg.msg_name = to.as_ptr() as *mut _;
            msg.msg_namelen = to.len() as u32;
        }
        if !files.is_empty() {
            let len = size_of_val(files) as u32;
            msg.msg_control = control.as_mut_ptr().cast();
            msg.msg_controllen = libc::CMSG_SPACE(len) as usize;
            let header = &mut *libc::CMSG_FIRSTHDR(&msg);
            header.cmsg_level = libc::SOL_SOCKET;
            header.cmsg_type = libc::SCM_RIGHTS;
            header.cmsg_len = libc::CMSG_LEN(len) as usize;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (i, file) in files.iter().enumerate() {
                data.add(i).write_unaligned(file.as_raw_fd());
            }
        }
        check(libc::sendmsg(fd.as_raw_fd(), &msg, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as i64).map(|n| n as usize)
    }
}

/// Takes ownership of a descriptor that a call of ours just returned as a number.
pub fn own(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks whether the number is open; callers pass a descriptor that nothing else owns.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into())?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
