//! A second instance that runs before its memory is there: a pager brings pages as they are touched, and all others meanwhile.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{fstat, SFlag};

use super::ranges::{self, Ranges};
use super::Loaded;
use crate::error::{Context, Error, Result};
use crate::image::Chain;
use crate::proc::{self, Pid};
use crate::resource::memory::{AddressSpace, Mapping};
use crate::sys::uffd::Uffd;
use crate::sys::{clone, fd, fd_extra, pidfd};
use crate::tracee::blank::Blank;

mod crew;
mod pager;
mod pending;
mod space;
mod wires;

/// A pager that has started, as the restorer sees it.
#[derive(Debug)]
pub struct Pager {
    socket: OwnedFd,
}

/// What the restorer tells its pager; each is one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    /// With a userfaultfd: the memory of an object is yours.
    Space,
    /// With a descriptor: this process is part of the instance.
    Process,
    /// From now on they may touch what is missing. Answered.
    Serve,
    /// They run. Answered.
    Run,
}

impl Tag {
    fn read(bytes: &[u8]) -> Option<(Tag, u32)> {
        let (&tag, object) = bytes.split_first()?;
        let tag = [Tag::Space, Tag::Process, Tag::Serve, Tag::Run].into_iter().find(|&known| known as u8 == tag)?;
        Some((tag, u32::from_le_bytes(object.try_into().ok()?)))
    }

    fn with(self, object: u32) -> Vec<u8> {
        [&[self as u8][..], &object.to_le_bytes()].concat()
    }
}

/// Which private memory can come later. A stack is read by whoever lists processes, locked memory must be there, what a fork
/// wipes is not the same in the child; and pages of files can only be written.
fn lazily(mapping: &Mapping) -> bool {
    ranges::is_plain(mapping) && !["gd", "lo", "wf"].iter().any(|flag| mapping.has(flag))
}

impl Pager {
    /// Starts a pager in a session of its own. It must be started where the instance's processes can be seen, before any
    /// namespace is made, by a process with a single thread. A `quiet` one holds no pipe of ours open.
    pub fn start(frame: &Loaded, quiet: bool) -> Result<Pager> {
        let (ours, theirs) = fd_extra::socketpair(libc::SOCK_SEQPACKET).map_err(|e| Error::io("cannot make a socket pair", e))?;
        let other = ours.as_raw_fd();
        let child = clone::child(0, || match live(frame, theirs, other, quiet) {
            Ok(status) => status,
            Err(e) => {
                eprintln!("stillframe: no pager: {e}");
                1
            }
        });
        child.map_err(|e| Error::io("cannot start a pager", e))?;
        Ok(Pager { socket: ours })
    }

    /// Waits until all its threads have their ids.
    pub(super) fn await_start(&self) -> Result<()> {
        self.await_answer()
    }

    /// Leaves the missing pages of an address space to the pager; returns the ranges that it will bring.
    pub(super) fn take(&self, chain: &Chain, space: &AddressSpace, blank: &mut Blank) -> Result<Ranges> {
        let wanted = Ranges::around(chain.runs(space.object), space, lazily);
        if wanted.is_empty() {
            return Ok(wanted);
        }
        let uffd = ranges::watch(blank, ranges::EVENTS).map_err(|e| e.context("--lazy needs userfaultfd with events (CAP_SYS_PTRACE)"))?;
        let mut watched = wanted.clone();
        watched.register(&uffd);
        if watched != wanted {
            // Too many mappings, perhaps: this one is filled at once.
            return Ok(Ranges::default());
        }
        self.tell(Tag::Space, space.object, Some(&uffd))?;
        Ok(watched)
    }

    /// Ties a process to the pager's life.
    pub(super) fn tie(&self, pid: Pid) -> Result<()> {
        let handle = pidfd::open(pid).context("cannot open a process of the instance")?;
        self.tell(Tag::Process, 0, Some(&handle))
    }

    /// From here on missing pages may be touched.
    pub(super) fn serve(&self) -> Result<()> {
        self.tell(Tag::Serve, 0, None::<&Uffd>)?;
        self.await_answer()
    }

    /// The instance is about to run.
    pub(super) fn run(&self) -> Result<()> {
        self.tell(Tag::Run, 0, None::<&Uffd>)?;
        self.await_answer()
    }

    fn tell(&self, tag: Tag, object: u32, file: Option<&impl AsFd>) -> Result<()> {
        let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
        fd::send(self.socket.as_fd(), &tag.with(object), &files, &[]).map(drop).map_err(|e| Error::io("cannot talk to the pager", e))
    }

    fn await_answer(&self) -> Result<()> {
        match fd::receive(self.socket.as_fd(), 1, 0) {
            Ok(Some(message)) if message.bytes == b"k" => Ok(()),
            Ok(_) => Err(Error::refused("the pager has ended; nothing runs, restore anew")),
            Err(e) => Err(Error::io("cannot hear from the pager", e)),
        }
    }
}

/// The guardian from its birth on: lets go of all that is its starter's.
fn live(frame: &Loaded, socket: OwnedFd, other: i32, quiet: bool) -> Result<i32> {
    let group = nix::unistd::getpgrp().as_raw();
    nix::unistd::setsid().context("cannot lead a session")?;
    drop(fd::own(other));
    close_inherited();
    let null = File::options().read(true).write(true).open("/dev/null").at("open", Path::new("/dev/null"))?;
    nix::unistd::dup2_stdin(&null).context("cannot close standard input")?;
    nix::unistd::dup2_stdout(&null).context("cannot close standard output")?;
    if quiet && is_pipe(std::io::stderr()) {
        nix::unistd::dup2_stderr(&null).context("cannot close standard error")?;
    }
    // No file system is to be kept busy.
    nix::unistd::chdir("/").context("cannot leave the working directory")?;
    pager::guard(Arc::clone(&frame.chain), frame.manifest.spaces.clone(), socket, group)
}

/// Whoever reads the other end would wait for us.
fn is_pipe(file: impl AsFd) -> bool {
    let kind = fstat(file).map_or(SFlag::empty(), |stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    [SFlag::S_IFIFO, SFlag::S_IFSOCK].contains(&kind)
}

/// Closes what our starter was given by its own starter; what we open ourselves is close-on-exec.
fn close_inherited() {
    for number in proc::numbers(Path::new("/proc/self/fd")).unwrap_or_default().into_iter().filter(|&number| number > 2) {
        let Ok(file) = fd::own(number) else { continue };
        if fd_extra::fcntl(file.as_fd(), libc::F_GETFD, 0).map_or(true, |flags| flags & libc::FD_CLOEXEC != 0) {
            let _ = file.into_raw_fd();
        }
    }
}
