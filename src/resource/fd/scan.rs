//! The look around: a duplicate of every descriptor, and which of them lead to the same description.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use super::info::{Directory, Info};
use super::{DescriptionId, Slot};
use crate::error::{Error, Result};
use crate::proc::{self, Pid};
use crate::resource::files::{FileId, FileTable};
use crate::sys::{kcmp, pidfd};

/// One description, as found.
#[derive(Debug)]
pub struct Found {
    /// Our duplicate; it shares the description, so offset and queues are the target's.
    pub fd: OwnedFd,
    /// fstat(2).
    pub stat: libc::stat,
    /// The process that holds it, as we number it.
    pub holder: Pid,
    /// Its number there; of a descriptor in flight, the socket's that it is queued in.
    pub number: i32,
    /// It is in flight, in a message that nobody has received.
    pub passed: bool,
    /// The lowest of the numbers 0, 1 and 2 that lead to it somewhere.
    pub stdio: Option<i32>,
    /// Where the link in /proc points, as text.
    pub link: String,
    /// The same, byte for byte.
    path: PathBuf,
    /// Its fdinfo.
    pub info: Info,
}

impl Found {
    /// Process and number, for messages.
    pub fn place(&self) -> String {
        let passed = if self.passed { ": a descriptor passed to it" } else { "" };
        format!("pid {} fd {}{passed}", self.holder, self.number)
    }

    /// Device and inode.
    pub fn inode(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// O_RDONLY, O_WRONLY or O_RDWR.
    pub fn access(&self) -> i32 {
        self.info.flags & libc::O_ACCMODE
    }

    /// Its place in the table of files.
    pub fn intern(&self, files: &mut FileTable) -> Result<FileId> {
        let (pid, what) = match self.passed {
            true => (std::process::id() as Pid, format!("fd/{}", self.fd.as_raw_fd())),
            false => (self.holder, format!("fd/{}", self.number)),
        };
        files.intern_known(pid, &what, &proc::path(pid, &what), self.path.clone(), &self.stat)
    }
}

/// One number of one table.
#[derive(Debug)]
pub struct Seen {
    /// The number.
    pub number: i32,
    /// Its description.
    pub found: DescriptionId,
    /// Its own fdinfo: close-on-exec, and the record locks of this table.
    pub info: Info,
}

impl Seen {
    /// As it goes into the manifest.
    pub fn slot(&self) -> Slot {
        Slot { fd: self.number, cloexec: self.info.cloexec, description: self.found }
    }
}

/// What two names of one description surely have in common while nothing runs.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key(u64, u64, i32, i64, Option<u64>);

/// Everything found.
#[derive(Debug)]
pub struct Scan {
    /// One process per table.
    pub holders: Vec<Pid>,
    /// Every description once.
    pub found: Vec<Found>,
    /// The numbers of each table, ascending.
    pub tables: Vec<Vec<Seen>>,
    /// Descriptions that only kcmp can tell apart, in its order.
    index: HashMap<Key, Vec<DescriptionId>>,
    /// Descriptions by device and inode.
    by_inode: BTreeMap<(u64, u64), Vec<DescriptionId>>,
}

impl Scan {
    /// Duplicates all descriptors of `holders`, one process per distinct table, in table order; they are stopped.
    /// Hold a [`Room`] from before the freeze, and the pause is shorter.
    pub fn of(holders: &[Pid]) -> Result<Scan> {
        let mut scan = Scan { holders: holders.to_vec(), found: Vec::new(), tables: Vec::new(), index: HashMap::new(), by_inode: BTreeMap::new() };
        holders.iter().try_for_each(|&pid| scan.read_table(pid))?;
        Ok(scan)
    }

    /// Duplicates all descriptors of the next table.
    fn read_table(&mut self, pid: Pid) -> Result<()> {
        let process = pidfd::open(pid).map_err(|e| Error::io(format!("pid {pid}: cannot take hold of its descriptors"), e))?;
        let infos = Directory::open(pid)?;
        let mut seen = Vec::new();
        // Not fd: listing a directory of /proc makes an inode per entry, and those of fdinfo are wanted anyway.
        for number in proc::numbers(&proc::path(pid, "fdinfo"))? {
            let fd = pidfd::get(process.as_fd(), number).map_err(|e| explain(pid, number, e))?;
            let info = Info::read(&infos, number)?;
            let found = self.add(fd, info.clone(), pid, number, false)?;
            if (0..=2).contains(&number) {
                let lowest = self.found[found].stdio.map_or(number, |other| other.min(number));
                self.found[found].stdio = Some(lowest);
            }
            seen.push(Seen { number, found, info });
        }
        self.tables.push(seen);
        Ok(())
    }

    /// Adds a descriptor that was in flight to description `to`.
    pub fn add_passed(&mut self, fd: OwnedFd, to: DescriptionId) -> Result<DescriptionId> {
        let own = std::process::id() as Pid;
        let info = Info::read(&Directory::open(own)?, fd.as_raw_fd())?;
        let (holder, number) = (self.found[to].holder, self.found[to].number);
        self.add(fd, info, holder, number, true)
    }

    fn add(&mut self, fd: OwnedFd, info: Info, holder: Pid, number: i32, passed: bool) -> Result<DescriptionId> {
        let failed = |e: nix::Error| Error::io(format!("pid {holder} fd {number}: cannot examine it"), e);
        let stat = nix::sys::stat::fstat(&fd).map_err(failed)?;
        let key = Key(stat.st_dev, stat.st_ino, info.flags, info.position, info.number("eventfd-id"));
        let group = self.index.entry(key).or_default();
        let place = search(group, &self.found, &fd).map_err(|e| Error::io(format!("pid {holder} fd {number}: cannot compare it with others (kcmp; needs CONFIG_KCMP)"), e))?;
        let at = match place {
            Ok(at) => return Ok(group[at]),
            Err(at) => at,
        };
        let id = self.found.len();
        group.insert(at, id);
        self.by_inode.entry((stat.st_dev, stat.st_ino)).or_default().push(id);
        let path = link(&fd, &stat, &info).map_err(|e| Error::io(format!("pid {holder} fd {number}: cannot read its link"), e))?;
        let link = path.to_string_lossy().into_owned();
        self.found.push(Found { fd, stat, holder, number, passed, stdio: None, link, path, info });
        Ok(id)
    }

    /// All descriptions of one inode.
    pub fn of_inode(&self, inode: (u64, u64)) -> impl Iterator<Item = (DescriptionId, &Found)> {
        self.by_inode.get(&inode).into_iter().flatten().map(|&id| (id, &self.found[id]))
    }

    /// What number `fd` of table `table` leads to.
    pub fn at(&self, table: usize, fd: i32) -> Option<DescriptionId> {
        let seen = &self.tables[table];
        seen.binary_search_by_key(&fd, |seen| seen.number).ok().map(|at| seen[at].found)
    }
}

/// Where a link in /proc would point; often that is plain without asking.
fn link(fd: &OwnedFd, stat: &libc::stat, info: &Info) -> std::io::Result<PathBuf> {
    const TELLING: [(&str, &str); 3] = [("eventfd-count", "eventfd"), ("sigmask", "signalfd"), ("clockid", "timerfd")];
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFSOCK if info.flags & libc::O_PATH == 0 => return Ok(format!("socket:[{}]", stat.st_ino).into()),
        0 => {
            if let Some((_, name)) = TELLING.iter().find(|(row, _)| info.row(row).is_some()) {
                return Ok(format!("anon_inode:[{name}]").into());
            }
        }
        _ => {}
    }
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Where `fd` is, or belongs, in a group sorted by kcmp: thousands of eventfds have one inode, so no linear search.
fn search(group: &[DescriptionId], found: &[Found], fd: &OwnedFd) -> std::io::Result<Result<usize, usize>> {
    let own = std::process::id() as Pid;
    let mut failure = None;
    let place = group.binary_search_by(|&id| {
        kcmp::files((own, found[id].fd.as_raw_fd()), (own, fd.as_raw_fd())).unwrap_or_else(|e| {
            failure = Some(e);
            Ordering::Equal
        })
    });
    failure.map_or(Ok(place), Err)
}

fn explain(pid: Pid, number: i32, e: std::io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::EMFILE) => Error::io(format!("pid {pid} fd {number}: the tree holds more descriptors than we may; raise our own limit (ulimit -n)"), e),
        _ => Error::io(format!("pid {pid} fd {number}: cannot duplicate it"), e),
    }
}

/// Room for the duplicates: our own soft limit on descriptors, raised to the hard one until dropped.
pub struct Room(Option<(u64, u64)>);

/// For so many descriptors our table is made large enough at once.
const ROOM: u64 = 8192;

impl Room {
    /// Makes room. Best done before the freeze: in a process with threads, each growth of the table waits milliseconds for RCU.
    pub fn make() -> Room {
        use nix::sys::resource::{getrlimit, setrlimit, Resource::RLIMIT_NOFILE};
        let old = getrlimit(RLIMIT_NOFILE).ok();
        let room = Room(old.filter(|&(_, hard)| setrlimit(RLIMIT_NOFILE, hard, hard).is_ok()));
        let highest = old.map_or(0, |(_, hard)| hard.min(ROOM)).saturating_sub(1) as i32;
        if let Ok(far) = nix::fcntl::fcntl(std::io::stderr(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(highest)) {
            let _ = nix::unistd::close(far);
        }
        room
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some((soft, hard)) = self.0 {
            let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, soft, hard);
        }
    }
}
