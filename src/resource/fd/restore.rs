//! Descriptions made anew in the restorer, then handed to the processes; see the module above for the order.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use super::{epoll, event, external, inet, inotify, locks, netlink, owner, pidfd, pipe, pty, regular, signalfd, timerfd, unix};
use super::{Description, DescriptionId, Descriptors, Kind, Table};
use crate::error::{Context, Error, Result};
use crate::resource::files::open::Opener;
use crate::sys::fd_extra::fcntl;
use crate::tracee::{blank::Blank, Remote, RemoteExt};

/// How descriptors are restored.
#[derive(Debug, Clone, Copy, Default)]
pub struct RestoreOptions {
    /// What led outside the tree on descriptors 0, 1 and 2 leads to our own; else to /dev/null.
    pub to_stdio: bool,
}

/// Every description, open in the restorer. Drop it when all tables are installed and armed, before the processes run:
/// it holds ends of pipes whose readers would wait for them.
pub struct OpenSet<'d> {
    descriptors: &'d Descriptors,
    local: Vec<Option<OwnedFd>>,
    terminals: Vec<pty::Made>,
    /// Per epoll set, the table whose holder adds its entries.
    homes: HashMap<DescriptionId, usize>,
    /// Descriptions whose owner has been named.
    owned: Vec<bool>,
    /// Differences from the frame, one line each.
    pub notes: Vec<String>,
}

/// Status flags that F_SETFL sets; O_ASYNC comes with the owner.
const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;

impl<'d> OpenSet<'d> {
    /// Makes every description that needs no living process of the tree.
    pub fn open(descriptors: &'d Descriptors, opener: &mut Opener<'_>, options: &RestoreOptions) -> Result<OpenSet<'d>> {
        let mut notes = Vec::new();
        let mut pipes = descriptors.pipes.iter().map(|pipe| pipe::make(pipe, opener, &mut notes)).collect::<Result<Vec<_>>>()?;
        let terminals = descriptors.terminals.iter().map(|pty| pty::make(pty, &mut notes)).collect::<Result<Vec<_>>>()?;
        let mut local: Vec<Option<OwnedFd>> = Vec::new();
        for description in &descriptors.descriptions {
            let fd = match &description.kind {
                Kind::Pipe(state) => Some(pipe::restore(at(&mut pipes, state.pipe)?, description)?),
                Kind::Terminal(state) => Some(pty::restore(state, at(&mut descriptors.terminals.iter().collect::<Vec<_>>(), state.terminal)?, description, &terminals[state.terminal])?),
                _ => single(description, opener, options, &mut notes)?,
            };
            local.push(fd);
        }
        for (pty, made) in descriptors.terminals.iter().zip(&terminals) {
            pty::close_up(pty, made)?;
        }
        let sockets = unix::restore::make(descriptors, &mut notes)?.finish(&local)?;
        for (id, socket) in sockets {
            local[id] = Some(socket);
        }
        let mut set = OpenSet { descriptors, local, terminals, homes: HashMap::new(), owned: vec![false; descriptors.descriptions.len()], notes };
        set.settle()?;
        Ok(set)
    }

    /// Flags and locks of all descriptions; homes of epoll sets.
    fn settle(&mut self) -> Result<()> {
        for (id, description) in self.descriptors.descriptions.iter().enumerate() {
            if let Some(fd) = &self.local[id] {
                set_flags(description, fd)?;
                locks::restore(&description.locks, fd)?;
            }
            if let Kind::Epoll(state) = &description.kind {
                match epoll::home(self.descriptors, id, state) {
                    Some(table) => drop(self.homes.insert(id, table)),
                    None if state.entries.is_empty() => {}
                    None => return Err(Error::refused("an epoll set is on its way through a unix socket, which cannot be restored; receive it before the checkpoint")),
                }
            }
        }
        Ok(())
    }

    fn table(&self, table: usize) -> Result<&'d Table> {
        self.descriptors.tables.get(table).ok_or_else(|| Error::corrupt(format!("the manifest names descriptor table {table}, which it does not list")))
    }

    /// Moves the descriptors of `table` into `blank`, whose only descriptor is a pidfd of ours, number `service`.
    pub fn install(&mut self, table: usize, blank: &mut Blank, service: i32) -> Result<()> {
        blank.set_service(service);
        let table = self.table(table)?;
        make_room(table, blank)?;
        let mut placed: HashMap<DescriptionId, i32> = HashMap::new();
        for slot in &table.slots {
            let Some(fd) = self.get(slot.description)? else { continue };
            let source = placed.get(&slot.description).copied();
            place(fd, source, slot.fd, slot.cloexec, blank)?;
            placed.entry(slot.description).or_insert(slot.fd);
        }
        Ok(())
    }

    fn get(&self, id: DescriptionId) -> Result<Option<&OwnedFd>> {
        self.local.get(id).map(Option::as_ref).ok_or_else(|| Error::corrupt(format!("the manifest names description {id}, which it does not list")))
    }

    /// Ties what depends on numbers and processes, for one table. Call it for every table when all tables are installed
    /// and all processes are there, in their sessions and process groups, still with the restorer's credentials.
    pub fn connect(&mut self, table: usize, blank: &mut Blank) -> Result<()> {
        let index = table;
        let table = self.table(index)?;
        for slot in &table.slots {
            if self.get(slot.description)?.is_none() {
                let description = &self.descriptors.descriptions[slot.description];
                let fd = late(description, blank)?;
                set_flags(description, &fd)?;
                self.local[slot.description] = Some(fd);
            }
            if is_late(&self.descriptors.descriptions[slot.description].kind) {
                if let Some(fd) = self.get(slot.description)? {
                    place(fd, None, slot.fd, slot.cloexec, blank)?;
                }
            }
        }
        self.watch(index, table, blank)?;
        locks::connect(&table.records, blank)?;
        for slot in &table.slots {
            self.own(slot.description, slot.fd, blank)?;
        }
        if let Some(control) = &table.terminal {
            pty::connect(control, terminal(&self.terminals, control)?, blank, &mut self.notes)?;
        }
        Ok(())
    }

    /// Gives the holder of `table`, which has just begun its session, the controlling terminal; before it forks members.
    pub fn take_terminal(&self, table: usize, blank: &mut Blank) -> Result<()> {
        match &self.table(table)?.terminal {
            Some(control) => pty::take(terminal(&self.terminals, control)?, blank),
            None => Ok(()),
        }
    }

    fn watch(&self, index: usize, table: &Table, blank: &mut Blank) -> Result<()> {
        let slots: HashMap<i32, DescriptionId> = table.slots.iter().map(|slot| (slot.fd, slot.description)).collect();
        let mut done = Vec::new();
        for slot in table.slots.iter().filter(|slot| self.homes.get(&slot.description) == Some(&index)) {
            let Kind::Epoll(state) = &self.descriptors.descriptions[slot.description].kind else { continue };
            if !done.contains(&slot.description) {
                done.push(slot.description);
                let missing = || Error::corrupt("an epoll set watches what is not restored");
                epoll::connect(state, slot.fd, &slots, blank, |id| self.get(id)?.ok_or_else(missing))?;
            }
        }
        Ok(())
    }

    fn own(&mut self, id: DescriptionId, fd: i32, blank: &mut Blank) -> Result<()> {
        if std::mem::replace(&mut self.owned[id], true) {
            return Ok(());
        }
        let description = &self.descriptors.descriptions[id];
        // What we share with our own caller is not to be changed for it.
        if matches!(description.kind, Kind::External(_)) {
            return Ok(());
        }
        owner::connect(description, fd, blank, &mut self.notes)
    }

    /// Starts what runs by itself: timers, inotify watches, leases. Last of all.
    pub fn arm(&mut self) -> Result<()> {
        for (description, fd) in self.descriptors.descriptions.iter().zip(&self.local) {
            let Some(fd) = fd else { continue };
            match &description.kind {
                Kind::Timer(state) => timerfd::arm(state, fd)?,
                Kind::Inotify(state) => inotify::arm(state, fd)?,
                _ => {}
            }
            for lock in description.locks.iter().filter(|lock| lock.class == locks::Class::Lease) {
                locks::lease(lock, fd)?;
            }
        }
        Ok(())
    }
}

fn terminal<'t>(terminals: &'t [pty::Made], control: &pty::Control) -> Result<&'t pty::Made> {
    terminals.get(control.terminal).ok_or_else(|| Error::corrupt("the manifest names a terminal that it does not list"))
}

fn at<T>(items: &mut [T], index: usize) -> Result<&mut T> {
    items.get_mut(index).ok_or_else(|| Error::corrupt(format!("the manifest names item {index} of a list that is shorter")))
}

/// Descriptions that stand by themselves; `None` for those made otherwise or later.
fn single(description: &Description, opener: &mut Opener<'_>, options: &RestoreOptions, notes: &mut Vec<String>) -> Result<Option<OwnedFd>> {
    match &description.kind {
        Kind::File(state) => regular::restore(state, description, opener),
        Kind::Kernel(state) if state.process.is_none() => regular::restore_kernel(state, description),
        Kind::Inet(state) => inet::restore(state, notes),
        Kind::Netlink(state) => netlink::restore(state, notes),
        Kind::Event(state) => event::restore(state),
        Kind::Epoll(_) => epoll::restore(),
        Kind::Timer(state) => timerfd::restore(state),
        Kind::Signal(state) => signalfd::restore(state),
        Kind::Inotify(state) => inotify::restore(state),
        Kind::Process(pidfd::State { process: None }) => pidfd::restore_dead(description),
        Kind::External(state) => external::restore(state, options, notes),
        Kind::Kernel(_) | Kind::Process(_) | Kind::Unix(_) | Kind::Pipe(_) | Kind::Terminal(_) => return Ok(None),
    }
    .map(Some)
}

/// Made only when the processes of the tree are there.
fn is_late(kind: &Kind) -> bool {
    matches!(kind, Kind::Kernel(regular::Kernel { process: Some(_), .. }) | Kind::Process(pidfd::State { process: Some(_) }))
}

fn late(description: &Description, blank: &mut Blank) -> Result<OwnedFd> {
    match &description.kind {
        Kind::Process(pidfd::State { process: Some(process) }) => pidfd::restore_live(*process, description, blank),
        Kind::Kernel(state) => regular::restore_kernel(state, description),
        _ => Err(Error::corrupt("a description was not restored in time")),
    }
}

/// What is shared with us from outside keeps its flags, and handles have none.
fn set_flags(description: &Description, fd: &OwnedFd) -> Result<()> {
    if description.flags & libc::O_PATH != 0 || matches!(description.kind, Kind::External(_)) {
        return Ok(());
    }
    let wanted = description.flags & SETTABLE;
    let have = fcntl(fd.as_fd(), libc::F_GETFL, 0).context("cannot read a descriptor's flags")?;
    if have & SETTABLE != wanted {
        fcntl(fd.as_fd(), libc::F_SETFL, wanted).context("cannot set a descriptor's flags")?;
    }
    Ok(())
}

/// Gives `blank` our `fd`, or a duplicate of its own `source`, as number `wanted`.
fn place(fd: &OwnedFd, source: Option<i32>, wanted: i32, cloexec: bool, blank: &mut Blank) -> Result<()> {
    let flag = if cloexec { libc::O_CLOEXEC as u64 } else { 0 };
    let wanted = wanted as u64;
    if let Some(source) = source {
        return blank.must(&format!("place fd {wanted}"), libc::SYS_dup3, [source as u64, wanted, flag, 0, 0, 0]).map(drop);
    }
    let got = blank.borrow(fd.as_fd())?;
    if got == wanted {
        if !cloexec {
            blank.must("clear close-on-exec", libc::SYS_fcntl, [got, libc::F_SETFD as u64, 0, 0, 0, 0])?;
        }
        return Ok(());
    }
    blank.must(&format!("place fd {wanted}"), libc::SYS_dup3, [got, wanted, flag, 0, 0, 0])?;
    blank.must("close a descriptor", libc::SYS_close, [got, 0, 0, 0, 0, 0]).map(drop)
}

/// Lets high numbers be used: limits come back later in the restore.
fn make_room(table: &Table, blank: &mut Blank) -> Result<()> {
    let Some(highest) = table.slots.last().map(|slot| slot.fd as u64) else { return Ok(()) };
    let at = blank.put(&[0; 16])?;
    blank.must("read its limits", libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE.into(), 0, at, 0, 0])?;
    let mut limits = [0u8; 16];
    blank.memory().read(at, &mut limits)?;
    let half = |range: std::ops::Range<usize>| u64::from_ne_bytes(limits[range].try_into().unwrap_or_default());
    let (soft, hard) = (half(0..8), half(8..16));
    // One more than the highest: descriptors pass through a free number on their way.
    if highest + 2 <= soft {
        return Ok(());
    }
    if highest + 2 > hard {
        return Err(Error::refused(format!("pid {} needs descriptor {highest}, and the limit here is {hard}; raise it (ulimit -Hn) for the restore", blank.pid())));
    }
    let at = blank.put(&[hard.to_ne_bytes(), hard.to_ne_bytes()].concat())?;
    blank.must("raise its limit of descriptors", libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE.into(), at, 0, 0, 0]).map(drop)
}
