//! Kernel features, each tried for real by the smallest use of it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use libc::pid_t;

use super::uffd::{feature, Uffd};
use super::{check, clone, fd, mapping::Shared, pagemap, pidfd, ptrace, PAGE};
use crate::proc::stat::Stat;

fn missing(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// A stopped, traced child that runs nothing; dies when dropped.
pub struct Subject {
    /// Its process id.
    pub pid: pid_t,
}

impl Subject {
    /// Forks one with process id `pid` (0: any).
    pub fn new(pid: pid_t) -> io::Result<Subject> {
        clone::blank(pid, 0).map(|pid| Subject { pid })
    }

    /// Traces and stops it.
    pub fn stop(&self) -> io::Result<()> {
        ptrace::seize(self.pid, ptrace::SYSGOOD)?;
        ptrace::interrupt(self.pid)?;
        ptrace::wait(self.pid, true).map(drop)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // It cannot have gone before: nobody else knows it.
        let _ = pidfd::open(self.pid).and_then(|handle| pidfd::send_signal(handle.as_fd(), libc::SIGKILL));
        while !matches!(ptrace::wait(self.pid, true), Ok(Some(ptrace::Event::Gone(_))) | Err(_)) {}
    }
}

/// Runs `body` in a child; fails with the error number that it exits with.
fn in_child(body: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let child = clone::child(0, || body().err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO)))?;
    match ptrace::wait(child, true)? {
        Some(ptrace::Event::Gone(status)) if libc::WIFEXITED(status) => match libc::WEXITSTATUS(status) {
            0 => Ok(()),
            errno => Err(missing(errno)),
        },
        _ => Err(missing(libc::EIO)),
    }
}

/// PAGEMAP_SCAN on a page of our own.
pub fn pagemap_scan() -> io::Result<()> {
    let page = std::ptr::from_ref(&missing) as u64 & !(PAGE - 1);
    let pagemap = File::open("/proc/self/pagemap")?;
    pagemap::scan(&pagemap, page, page + PAGE, pagemap::category::PRESENT, pagemap::category::PRESENT).map(drop)
}

#[repr(C)]
struct MmMap {
    addresses: [u64; 11],
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// PR_SET_MM_MAP: a child sets the addresses that it has.
pub fn set_mm_map(stat: &Stat) -> io::Result<()> {
    const PR_SET_MM_MAP: libc::c_ulong = 14;
    in_child(|| {
        // SAFETY: sbrk of zero changes nothing.
        let brk = unsafe { libc::sbrk(0) } as u64;
        let s = stat;
        let addresses = [s.start_code, s.end_code, s.start_data, s.end_data, s.start_brk, brk, s.start_stack, s.arg_start, s.arg_end, s.env_start, s.env_end];
        let map = MmMap { addresses, auxv: 0, auxv_size: 0, exe_fd: u32::MAX };
        // SAFETY: `map` is live and of the size stated.
        check(unsafe { libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, &map, size_of::<MmMap>(), 0) }.into()).map(drop)
    })
}

/// Asynchronous write protection by userfaultfd (Linux 6.7).
pub fn uffd_wp_async() -> io::Result<()> {
    let uffd = Uffd::own(0)?;
    uffd.handshake(feature::WP_ASYNC | feature::WP_UNPOPULATED)
}

/// Whether timers can be made with chosen ids (Linux 6.15).
pub fn timer_restore_ids() -> io::Result<()> {
    const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
    const GET: libc::c_ulong = 2;
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, GET, 0, 0, 0) }.into()).map(drop)
}

/// A child makes a time namespace.
pub fn time_namespace() -> io::Result<()> {
    const CLONE_NEWTIME: i32 = 0x80;
    // SAFETY: plain numbers.
    in_child(|| check(unsafe { libc::unshare(CLONE_NEWTIME) }.into()).map(drop))
}

/// Asks the kernel for all unix sockets by sock_diag(7).
pub fn unix_diag() -> io::Result<()> {
    const NETLINK_SOCK_DIAG: i32 = 4;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLMSG_ERROR: u16 = 2;
    const REQUEST_DUMP: u16 = 0x301;
    let socket = fd::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)?;
    // A netlink header, and a request for stream sockets in any state with nothing about them shown.
    let mut request = Vec::new();
    request.extend(40u32.to_ne_bytes());
    request.extend([SOCK_DIAG_BY_FAMILY, REQUEST_DUMP].map(u16::to_ne_bytes).concat());
    request.extend([0; 8]);
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend([0; 16]);
    let kernel = [libc::AF_NETLINK as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fd::send(socket.as_fd(), &request, &[], &kernel)?;
    let answer = fd::receive(socket.as_fd(), 1 << 16, 0)?.map(|message| message.bytes).unwrap_or_default();
    match answer.get(4..6) {
        Some(kind) if kind != NLMSG_ERROR.to_ne_bytes() => Ok(()),
        _ => Err(missing(libc::ENOENT)),
    }
}

/// Opens a mapping of our own by way of /proc/self/map_files.
pub fn map_files() -> io::Result<()> {
    Shared::new(PAGE, PAGE)?.file().map(drop)
}

/// Shares blocks between two files in `dir`.
pub fn reflink(dir: &Path) -> io::Result<()> {
    const FICLONE: libc::c_ulong = 0x4004_9409;
    let (mut from, to) = (tempfile::tempfile_in(dir)?, tempfile::tempfile_in(dir)?);
    io::Write::write_all(&mut from, &[1; PAGE as usize])?;
    fd::ioctl_number(to.as_fd(), FICLONE, std::os::fd::AsRawFd::as_raw_fd(&from) as libc::c_ulong).map(drop)
}
