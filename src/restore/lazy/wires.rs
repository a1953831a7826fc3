//! Trip wires: the kernel kills processes when we end, before it lets go of their pages.
//!
//! A userfaultfd that closes makes every page that has not come read as zero. The end of a pipe that closes can send any
//! signal, SIGKILL as well, to whom the other end names. A dying process closes its descriptors in the order of their
//! numbers or against it; so there are two pipes, one closed before all else in either order.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::sys::resource::{getrlimit, Resource};

use crate::error::{Context, Error, Result};
use crate::proc::{self, stat, Pid};
use crate::sys::{fd, fd_extra, pidfd};

const F_SETSIG: i32 = 10;
/// Numbers above which a descriptor table gets large.
const HIGHEST: u64 = 16_384;

/// The ends of the two pipes.
pub struct Wires {
    readers: [OwnedFd; 2],
    writers: [OwnedFd; 2],
    /// A group whose members are not all of the instance.
    spared: Pid,
}

impl Wires {
    /// Lays the wires; descriptors that are to close after them must be opened later, and no lower ones be closed. Group `spared` is never killed as a group.
    pub fn new(spared: Pid) -> Result<Wires> {
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe");
        let (low, high) = (pipe()?, pipe()?);
        let limit = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?.0;
        let number = limit.min(HIGHEST).saturating_sub(2) as i32;
        let moved = fcntl(&high.1, FcntlArg::F_DUPFD_CLOEXEC(number)).context("cannot number a pipe")?;
        let moved = fd::own(moved).context("cannot number a pipe")?;
        Ok(Wires { readers: [low.0, high.0], writers: [low.1, moved], spared })
    }

    /// Descriptors that trip when a wire does, and then kill `target`: a process, or the negative of a group.
    fn tied_to(&self, target: Pid) -> Result<[File; 2]> {
        let tie = |reader: &OwnedFd| {
            let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
            // A description of its own: each has one owner.
            let end = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).at("open", &path)?;
            let set = |command, argument| fd_extra::fcntl(end.as_fd(), command, argument);
            let done = set(libc::F_SETOWN, target).and_then(|_| set(F_SETSIG, libc::SIGKILL)).and_then(|_| set(libc::F_SETFL, libc::O_NONBLOCK | libc::O_ASYNC));
            done.map_err(|e| Error::io(format!("cannot tie the life of process {target} to the pager's"), e))?;
            Ok(end)
        };
        Ok([tie(&self.readers[0])?, tie(&self.readers[1])?])
    }

    /// Trips both wires, in all processes that share our descriptors.
    pub fn pull(&self) {
        self.writers.iter().for_each(|writer| drop(fd::own(writer.as_raw_fd())));
    }
}

/// A process of the instance, tied to the wires.
struct Tied {
    handle: OwnedFd,
    _ends: [File; 2],
}

/// The processes of the instance and their groups.
pub struct Flock<'a> {
    wires: &'a Wires,
    processes: HashMap<Pid, Tied>,
    groups: HashMap<Pid, [File; 2]>,
}

impl<'a> Flock<'a> {
    /// Nobody yet.
    pub fn new(wires: &'a Wires) -> Flock<'a> {
        Flock { wires, processes: HashMap::new(), groups: HashMap::new() }
    }

    /// Ties a process, and its group, whose later members are caught with it.
    pub fn add(&mut self, handle: OwnedFd) -> Result<()> {
        let Some(pid) = pid_of(handle.as_raw_fd()) else { return Ok(()) };
        let ends = self.wires.tied_to(pid)?;
        self.processes.insert(pid, Tied { handle, _ends: ends });
        let group = stat::read(pid).map_or(0, |stat| stat.pgid);
        if group > 1 && group != self.wires.spared && !self.groups.contains_key(&group) {
            self.groups.insert(group, self.wires.tied_to(-group)?);
        }
        Ok(())
    }

    /// Unties all.
    pub fn set_free(&mut self) {
        self.processes.clear();
        self.groups.clear();
    }

    /// Ties children that were born since; true if there were any.
    pub fn grow(&mut self) -> Result<bool> {
        self.processes.retain(|_, tied| fd_extra::ready(tied.handle.as_fd(), libc::POLLIN).is_ok_and(|events| events == 0));
        let mut grown = false;
        let mut ahead: Vec<Pid> = self.processes.keys().copied().collect();
        while let Some(parent) = ahead.pop() {
            for child in proc::children(parent).unwrap_or_default() {
                // It may be dead by now.
                let Some(handle) = pidfd::open(child).ok().filter(|_| !self.processes.contains_key(&child)) else { continue };
                self.add(handle)?;
                ahead.push(child);
                grown = true;
            }
        }
        Ok(grown)
    }
}

/// The id, as we see it, of the process that descriptor `number` of ours stands for; none if it is dead or stands for none.
pub fn pid_of(number: i32) -> Option<Pid> {
    let info = proc::text(&PathBuf::from(format!("/proc/self/fdinfo/{number}"))).ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok()).filter(|&pid| pid > 0)
}
