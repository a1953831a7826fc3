//! Descriptors: every open file description of the tree once, and per table which number leads to which.
//!
//! Capture works on duplicates (`pidfd_getfd`), never on the target, and leaves offsets, queues and options as they are.
//! A restore goes in four steps, each for all tables before the next: [`restore::OpenSet::open`] makes the descriptions in
//! the restorer, `install` moves them into blank processes, `connect` ties what depends on numbers and processes
//! (all processes must exist, in their sessions and groups), `arm` starts what runs by itself (timers, inotify watches).
//! Only controlling terminals come earlier: `take_terminal`, when a session begins.

pub mod diag;
pub mod epoll;
pub mod event;
pub mod external;
pub mod inet;
pub mod info;
pub mod inotify;
pub mod locks;
pub mod netlink;
pub mod options;
pub mod owner;
pub mod pidfd;
pub mod pipe;
pub mod pty;
pub mod regular;
pub mod restore;
pub mod scan;
pub mod signalfd;
pub mod timerfd;
pub mod unix;

use std::collections::HashMap;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::proc::{Pid, status::Status};
use crate::resource::files::FileTable;
use scan::{Found, Scan};

/// Index into [`Descriptors::descriptions`].
pub type DescriptionId = usize;

/// What an open file description is, with what its kind needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A file, directory or device with a place in the file table.
    File(regular::State),
    /// A file of /proc, /sys or the like: reopened by its path.
    Kernel(regular::Kernel),
    /// An end of a pipe or FIFO.
    Pipe(pipe::State),
    /// A unix socket.
    Unix(unix::State),
    /// A TCP, UDP or ping socket.
    Inet(inet::State),
    /// A netlink socket.
    Netlink(netlink::State),
    /// An eventfd.
    Event(event::State),
    /// An epoll set.
    Epoll(epoll::State),
    /// A timerfd.
    Timer(timerfd::State),
    /// A signalfd.
    Signal(signalfd::State),
    /// An inotify instance.
    Inotify(inotify::State),
    /// A side of a pseudo terminal of the tree.
    Terminal(pty::State),
    /// A process descriptor.
    Process(pidfd::State),
    /// Something that leads outside the tree.
    External(external::State),
}

/// One open file description.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    /// O_* flags, close-on-exec excepted.
    pub flags: i32,
    /// File offset.
    pub position: i64,
    /// Who gets its signals, and which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<owner::State>,
    /// Locks that belong to the description itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<locks::Lock>,
    /// What it is.
    pub kind: Kind,
}

/// One descriptor number.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Slot {
    /// The number.
    pub fd: i32,
    /// Close-on-exec.
    pub cloexec: bool,
    /// What it leads to.
    pub description: DescriptionId,
}

/// One descriptor table, and what belongs to its holder.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Table {
    /// Its descriptors, ascending.
    pub slots: Vec<Slot>,
    /// POSIX record locks held through it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<locks::Record>,
    /// The controlling terminal, if the holder leads a session that has one inside the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<pty::Control>,
}

/// All descriptors of a tree.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Descriptors {
    /// Every description once.
    pub descriptions: Vec<Description>,
    /// The tables, in the order of the holders given to [`capture`].
    pub tables: Vec<Table>,
    /// Pipes and FIFOs that descriptions are ends of.
    pub pipes: Vec<pipe::Pipe>,
    /// Pseudo terminals that descriptions are sides of.
    pub terminals: Vec<pty::Pty>,
    /// What the frame does not hold, one line each.
    pub notes: Vec<String>,
}

/// What a capture may give up, and whom it is about.
#[derive(Debug, Clone, Default)]
pub struct CaptureOptions {
    /// All processes of the tree, zombies too, as we number them; the holders are part of it whether listed or not.
    pub tree: Vec<Pid>,
    /// `--external close`: pipes and sockets that lead outside come back hung up, where they would be refused.
    pub external_close: bool,
    /// `--tcp close`: TCP connections come back reset, where they would be refused.
    pub tcp_close: bool,
}

/// What every kind's capture sees.
pub struct Capture<'a> {
    /// The duplicates and tables.
    pub scan: &'a Scan,
    /// The frame's file table.
    pub files: &'a mut FileTable,
    /// What may be given up.
    pub options: &'a CaptureOptions,
    /// Pipes so far.
    pub pipes: Vec<pipe::Pipe>,
    /// Pseudo terminals so far.
    pub terminals: Vec<pty::Pty>,
    /// Default socket options by family, type and protocol.
    pub baselines: options::Baselines,
    /// Lines for [`Descriptors::notes`].
    pub notes: Vec<String>,
    inner: HashMap<Pid, Option<Pid>>,
    /// The kind of each file system, by device number.
    file_systems: HashMap<u64, i64>,
}

impl Capture<'_> {
    /// The innermost number of process (or thread) `pid`, where it is alive.
    pub fn inner(&mut self, pid: Pid) -> Option<Pid> {
        *self.inner.entry(pid).or_insert_with(|| Status::read(pid).and_then(|status| status.innermost("NSpid")).ok())
    }

    /// The magic number of the file system that a file lies in (statfs(2)).
    pub fn file_system(&mut self, found: &Found) -> Result<i64> {
        if let Some(&magic) = self.file_systems.get(&found.stat.st_dev) {
            return Ok(magic);
        }
        let magic = nix::sys::statfs::fstatfs(&found.fd).map_err(|e| found.failed("examine", e))?.filesystem_type().0 as i64;
        self.file_systems.insert(found.stat.st_dev, magic);
        Ok(magic)
    }

    /// Whether process `pid` is part of the tree.
    pub fn in_tree(&self, pid: Pid) -> bool {
        self.scan.holders.contains(&pid) || self.options.tree.contains(&pid)
    }

    fn describe(&mut self, found: &Found, unix: &mut unix::Survey) -> Result<Description> {
        let kind = self.kind(found, unix)?;
        Ok(Description {
            flags: found.info.flags,
            position: found.info.position,
            owner: owner::capture(self, found)?,
            locks: locks::of_description(&found.info),
            kind,
        })
    }

    fn kind(&mut self, found: &Found, unix: &mut unix::Survey) -> Result<Kind> {
        let path_only = found.info.flags & libc::O_PATH != 0;
        match found.stat.st_mode & libc::S_IFMT {
            _ if path_only => regular::capture(self, found),
            libc::S_IFIFO => pipe::capture(self, found),
            libc::S_IFSOCK => socket(self, found, unix),
            libc::S_IFCHR => match pty::is_terminal(found) {
                Some(which) => pty::capture(self, found, which),
                None => regular::capture(self, found),
            },
            libc::S_IFREG | libc::S_IFDIR | libc::S_IFBLK | libc::S_IFLNK => regular::capture(self, found),
            _ => anonymous(self, found),
        }
    }
}

fn socket(capture: &mut Capture<'_>, found: &Found, unix: &mut unix::Survey) -> Result<Kind> {
    let word = |name| crate::sys::fd::sockopt::<i32>(found.fd.as_fd(), libc::SOL_SOCKET, name).map_err(|e| found.failed("examine", e));
    match word(libc::SO_DOMAIN)? {
        libc::AF_UNIX => unix.state(capture, found),
        family @ (libc::AF_INET | libc::AF_INET6) => inet::capture(capture, found, family, word(libc::SO_TYPE)?, word(libc::SO_PROTOCOL)?).map(Kind::Inet),
        libc::AF_NETLINK => netlink::capture(capture, found, word(libc::SO_TYPE)?, word(libc::SO_PROTOCOL)?).map(Kind::Netlink),
        family => Err(found.refused(&format!("a socket of {}", family_name(family)))),
    }
}

fn family_name(family: i32) -> String {
    match family {
        libc::AF_PACKET => "the packet family (raw Ethernet)".to_owned(),
        libc::AF_VSOCK => "the vsock family".to_owned(),
        libc::AF_ALG => "the kernel crypto family".to_owned(),
        libc::AF_BLUETOOTH => "the Bluetooth family".to_owned(),
        libc::AF_XDP => "the XDP family".to_owned(),
        _ => format!("address family {family}"),
    }
}

/// Kinds that have no file type: the name behind the link tells.
fn anonymous(capture: &mut Capture<'_>, found: &Found) -> Result<Kind> {
    let name = found.link.trim_start_matches("anon_inode:").trim_matches(['[', ']']);
    match name {
        "eventfd" => event::capture(found).map(Kind::Event),
        "eventpoll" => epoll::capture(capture, found).map(Kind::Epoll),
        "timerfd" => timerfd::capture(found).map(Kind::Timer),
        "signalfd" => signalfd::capture(found).map(Kind::Signal),
        "inotify" => inotify::capture(capture, found).map(Kind::Inotify),
        "pidfd" => pidfd::capture(capture, found).map(Kind::Process),
        _ => Err(found.refused(&describe_unknown(name))),
    }
}

fn describe_unknown(name: &str) -> String {
    match name {
        "io_uring" => "an io_uring instance".to_owned(),
        "userfaultfd" => "a userfaultfd".to_owned(),
        "perf_event" => "a perf event".to_owned(),
        "fanotify" => "a fanotify group".to_owned(),
        _ if name.starts_with("bpf") => format!("a BPF object ({name})"),
        _ if name.starts_with("kvm") => format!("a virtual machine ({name})"),
        _ if name.contains("dmabuf") => "a DMA buffer".to_owned(),
        _ => format!("{name:?}, a kernel object of a kind unknown to us"),
    }
}

/// Captures what `scan` has found; all of the tree is still stopped.
pub fn capture(mut scan: Scan, files: &mut FileTable, options: &CaptureOptions) -> Result<Descriptors> {
    let mut unix = unix::Survey::take(&mut scan)?;
    let mut capture = Capture {
        scan: &scan,
        files,
        options,
        pipes: Vec::new(),
        terminals: Vec::new(),
        baselines: options::Baselines::default(),
        notes: Vec::new(),
        inner: HashMap::new(),
        file_systems: HashMap::new(),
    };
    pty::survey(&mut capture)?;
    let descriptions = scan.found.iter().map(|found| capture.describe(found, &mut unix)).collect::<Result<Vec<_>>>()?;
    let mut tables = Vec::new();
    for (index, slots) in scan.tables.iter().enumerate() {
        let records = locks::of_table(&scan, index);
        tables.push(Table { slots: slots.iter().map(scan::Seen::slot).collect(), records, terminal: pty::control(&mut capture, scan.holders[index])? });
    }
    unix.notes(&mut capture.notes);
    Ok(Descriptors { descriptions, tables, pipes: capture.pipes, terminals: capture.terminals, notes: capture.notes })
}

/// What cannot be put into a frame is refused in words that say what to do.
pub(crate) const REMEDY: &str = "close it before the checkpoint";

impl Found {
    /// The refusal of this description, which is `what`.
    pub fn refused(&self, what: &str) -> Error {
        Error::refused(format!("{} is {what}, which no frame can hold; {REMEDY}", self.place()))
    }

    /// A failed system call on this description.
    pub fn failed(&self, verb: &str, e: impl Into<std::io::Error>) -> Error {
        Error::io(format!("{}: cannot {verb} {}", self.place(), self.link), e)
    }
}
