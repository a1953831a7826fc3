//! The look around: a duplicate of every descriptor, and which of them lead to the same description.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{self, AtomicUsize};
use std::sync::{Mutex, OnceLock, PoisonError};

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
        let scanner = Scanner::new(holders);
        scanner.help();
        scanner.end()
    }

    /// Adds a descriptor that was in flight to description `to`.
    pub fn add_passed(&mut self, fd: OwnedFd, to: DescriptionId) -> Result<DescriptionId> {
        let own = std::process::id() as Pid;
        let (holder, number) = (self.found[to].holder, self.found[to].number);
        let info = Info::read(&Directory::open(own)?, fd.as_raw_fd())?;
        let seen = Duplicate::examine(fd, info, holder, number)?;
        self.add(seen, holder, number, true)
    }

    fn add(&mut self, Duplicate { fd, stat, path, info }: Duplicate, holder: Pid, number: i32, passed: bool) -> Result<DescriptionId> {
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

/// A descriptor of ours for one of the target's, and what it is.
struct Duplicate {
    fd: OwnedFd,
    stat: libc::stat,
    path: PathBuf,
    info: Info,
}

impl Duplicate {
    fn take(process: &OwnedFd, infos: &Directory, pid: Pid, number: i32) -> Result<Duplicate> {
        let fd = pidfd::get(process.as_fd(), number).map_err(|e| explain(pid, number, e))?;
        Duplicate::examine(fd, Info::read(infos, number)?, pid, number)
    }

    fn examine(fd: OwnedFd, info: Info, pid: Pid, number: i32) -> Result<Duplicate> {
        let stat = nix::sys::stat::fstat(&fd).map_err(|e| Error::io(format!("pid {pid} fd {number}: cannot examine it"), e))?;
        let path = link(&fd, &stat, &info).map_err(|e| Error::io(format!("pid {pid} fd {number}: cannot read its link"), e))?;
        Ok(Duplicate { fd, stat, path, info })
    }
}

/// The duplicating, in parts that several threads may share.
pub struct Scanner {
    holders: Vec<Pid>,
    list: OnceLock<Result<List>>,
    next: AtomicUsize,
    taken: Mutex<Result<Vec<(usize, Duplicate)>>>,
}

/// All descriptors of all tables.
struct List {
    /// For each table its holder's process descriptor and fdinfo directory.
    holders: Vec<(OwnedFd, Directory)>,
    /// Table and number.
    numbers: Vec<(usize, i32)>,
}

impl List {
    fn read(pids: &[Pid]) -> Result<List> {
        let mut list = List { holders: Vec::new(), numbers: Vec::new() };
        for (table, &pid) in pids.iter().enumerate() {
            let process = pidfd::open(pid).map_err(|e| Error::io(format!("pid {pid}: cannot take hold of its descriptors"), e))?;
            list.holders.push((process, Directory::open(pid)?));
            // Not fd: listing a directory of /proc makes an inode per entry, and those of fdinfo are wanted anyway.
            list.numbers.extend(proc::numbers(&proc::path(pid, "fdinfo"))?.into_iter().map(|number| (table, number)));
        }
        Ok(list)
    }
}

impl Scanner {
    /// Of the tables of `holders`: see [`Scan::of`].
    pub fn new(holders: &[Pid]) -> Scanner {
        Scanner { holders: holders.to_vec(), list: OnceLock::new(), next: AtomicUsize::new(0), taken: Mutex::new(Ok(Vec::new())) }
    }

    /// Duplicates descriptors that nobody has duplicated, until there are none; what another thread has begun is not waited for.
    pub fn help(&self) {
        let Ok(list) = self.list.get_or_init(|| List::read(&self.holders)) else { return };
        let mut own = Vec::new();
        loop {
            let at = self.next.fetch_add(1, atomic::Ordering::Relaxed);
            let Some(&(table, number)) = list.numbers.get(at) else { break };
            let (process, infos) = &list.holders[table];
            match Duplicate::take(process, infos, self.holders[table], number) {
                Ok(duplicate) => own.push((at, duplicate)),
                Err(e) => {
                    *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Err(e);
                    return;
                }
            }
        }
        if let Ok(taken) = self.taken.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            taken.append(&mut own);
        }
    }

    /// Ends the duplicating, once all who helped are done, and finds out which descriptors lead to the same description.
    pub fn end(self) -> Result<Scan> {
        let mut taken = self.taken.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        let list = self.list.into_inner().unwrap_or_else(|| List::read(&self.holders))?;
        taken.sort_unstable_by_key(|(at, _)| *at);
        let mut scan = Scan { tables: self.holders.iter().map(|_| Vec::new()).collect(), holders: self.holders, found: Vec::new(), index: HashMap::new(), by_inode: BTreeMap::new() };
        for (at, duplicate) in taken {
            let (table, number) = list.numbers[at];
            let info = duplicate.info.clone();
            let found = scan.add(duplicate, scan.holders[table], number, false)?;
            if (0..=2).contains(&number) {
                let lowest = scan.found[found].stdio.map_or(number, |other| other.min(number));
                scan.found[found].stdio = Some(lowest);
            }
            scan.tables[table].push(Seen { number, found, info });
        }
        Ok(scan)
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
