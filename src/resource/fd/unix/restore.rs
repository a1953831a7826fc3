//! Unix sockets made anew: all of them first, then their queues, then what ends or narrows them.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use super::capture::show;
use super::home::Home;
use super::{Name, Packet, Role, State};
use crate::error::{Context, Error, Result};
use crate::resource::fd::{inet, options, DescriptionId, Descriptors, Kind};
use crate::sys::{fd, fd_extra};

/// The sockets on their way.
pub struct Workshop<'a> {
    states: Vec<(DescriptionId, &'a State)>,
    made: HashMap<DescriptionId, OwnedFd>,
    /// Other ends of sockets whose peers are gone.
    gone: HashMap<DescriptionId, OwnedFd>,
    /// Of those with a path as their name; attics last until all are connected.
    homes: HashMap<DescriptionId, Home>,
    notes: &'a mut Vec<String>,
}

/// Makes all unix sockets; their queues are left empty.
pub fn make<'a>(descriptors: &'a Descriptors, notes: &'a mut Vec<String>) -> Result<Workshop<'a>> {
    let state = |(id, description): (usize, &'a super::super::Description)| match &description.kind {
        Kind::Unix(state) => Some((id, state)),
        _ => None,
    };
    let states = descriptors.descriptions.iter().enumerate().filter_map(state).collect();
    let mut shop = Workshop { states, made: HashMap::new(), gone: HashMap::new(), homes: HashMap::new(), notes };
    shop.singles()?;
    shop.pairs()?;
    Ok(shop)
}

impl<'a> Workshop<'a> {
    fn is_connected(state: &State) -> bool {
        matches!(state.role, Role::Pair { .. } | Role::HungUp)
    }

    /// Sockets by themselves.
    fn singles(&mut self) -> Result<()> {
        let singles: Vec<_> = self.states.iter().copied().filter(|(_, state)| !Self::is_connected(state)).collect();
        for (id, state) in singles {
            let socket = fd::socket(libc::AF_UNIX, state.kind, 0).context("cannot make a unix socket")?;
            self.bind(id, socket.as_fd(), state)?;
            if let Role::Listening { backlog } = state.role {
                fd_extra::listen(socket.as_fd(), backlog).context("cannot listen on a unix socket")?;
            }
            self.made.insert(id, socket);
        }
        Ok(())
    }

    fn pairs(&mut self) -> Result<()> {
        for (id, state) in self.states.clone() {
            match state.role {
                Role::HungUp => {
                    let (kept, gone) = fd_extra::socketpair(state.kind).context("cannot make a pair of unix sockets")?;
                    self.bind(id, kept.as_fd(), state)?;
                    self.made.insert(id, kept);
                    self.gone.insert(id, gone);
                }
                Role::Pair { peer } if id <= peer => self.pair(id, peer)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn state(&self, id: DescriptionId) -> Result<&'a State> {
        let at = self.states.binary_search_by_key(&id, |(id, _)| *id).map_err(|_| Error::corrupt(format!("description {id} is no unix socket, though one is its peer")))?;
        Ok(self.states[at].1)
    }

    fn pair(&mut self, a: DescriptionId, b: DescriptionId) -> Result<()> {
        let (first, second) = (self.state(a)?, self.state(b)?);
        if a == b {
            return self.own_peer(a, first);
        }
        let inherited = |state: &State| state.name.as_ref().is_some_and(|name| name.inherited);
        let through = if inherited(first) { self.by_listener(first, (b, second))? } else { None };
        if let Some((accepted, client)) = through {
            self.made.insert(a, accepted);
            self.made.insert(b, client);
            return Ok(());
        }
        if let Some((accepted, client)) = if inherited(second) { self.by_listener(second, (a, first))? } else { None } {
            self.made.insert(b, accepted);
            self.made.insert(a, client);
            return Ok(());
        }
        let (one, other) = fd_extra::socketpair(first.kind).context("cannot make a pair of unix sockets")?;
        self.bind(a, one.as_fd(), first)?;
        self.bind(b, other.as_fd(), second)?;
        self.made.insert(a, one);
        self.made.insert(b, other);
        Ok(())
    }

    /// A datagram socket that sends to itself.
    fn own_peer(&mut self, id: DescriptionId, state: &State) -> Result<()> {
        let socket = fd::socket(libc::AF_UNIX, state.kind, 0).context("cannot make a unix socket")?;
        self.bind(id, socket.as_fd(), state)?;
        self.made.insert(id, socket);
        self.reach(id, |address| fd::connect(self.made[&id].as_fd(), address)).context("cannot connect a unix socket to itself")
    }

    /// Connects to the listener whose name the accepted side bears, so that it bears it again; `None` if the tree has no such listener.
    fn by_listener(&mut self, accepted: &State, (client_id, client): (DescriptionId, &State)) -> Result<Option<(OwnedFd, OwnedFd)>> {
        let Some(name) = &accepted.name else { return Ok(None) };
        let has_name = |state: &State| matches!(state.role, Role::Listening { .. }) && state.kind == accepted.kind && state.name.as_ref().is_some_and(|other| other.address == name.address);
        let Some(id) = self.states.iter().find(|(_, state)| has_name(state)).map(|(id, _)| *id) else { return Ok(None) };
        let socket = fd::socket(libc::AF_UNIX, client.kind, 0).context("cannot make a unix socket")?;
        self.bind(client_id, socket.as_fd(), client)?;
        let listener = &self.made[&id];
        let join = |address: &[u8]| -> std::io::Result<OwnedFd> {
            fd::connect(socket.as_fd(), address)?;
            loop {
                // Strangers may have found the listener already: they are sent away, and may come again.
                let taken = fd_extra::accept(listener.as_fd())?;
                let from: libc::ucred = fd::sockopt(taken.as_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED)?;
                if from.pid == std::process::id() as i32 {
                    return Ok(taken);
                }
            }
        };
        match self.reach(id, join) {
            Ok(taken) => Ok(Some((taken, socket))),
            Err(e) => {
                self.notes.push(format!("a connection could not be made through {} again ({e}), so its accepted side has no name", show(&name.address)));
                Ok(None)
            }
        }
    }

    /// Does something with the address of a bound socket, from where it leads there.
    fn reach<T>(&self, id: DescriptionId, action: impl FnOnce(&[u8]) -> std::io::Result<T>) -> std::io::Result<T> {
        let address = fd::local_address(self.made[&id].as_fd())?;
        match self.homes.get(&id) {
            Some(home) => home.visit(|| action(&address)),
            None => action(&address),
        }
    }

    fn bind(&mut self, id: DescriptionId, socket: BorrowedFd<'_>, state: &State) -> Result<()> {
        let Some(name) = state.name.as_ref().filter(|name| !name.inherited) else { return Ok(()) };
        let home = match &name.file {
            Some(file) => Some(Home::new(&file.home, &name.address)),
            None if is_path(&name.address) => Some(Home::attic(&name.address).context("cannot make a directory for a unix socket")?),
            None => None,
        };
        if let (Some(home), Some(_)) = (&home, &name.file) {
            clear_stale(home, name, state.kind)?;
        }
        bind_at(home.as_ref(), socket, &name.address).map_err(|e| in_use(name, e))?;
        if let (Some(home), Some(file)) = (&home, &name.file) {
            let path = home.file();
            std::os::unix::fs::lchown(&path, Some(file.uid), Some(file.gid)).at("set the owner of", &path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(file.mode)).at("set the mode of", &path)?;
        }
        self.homes.extend(home.map(|home| (id, home)));
        Ok(())
    }

    /// Sends every queue's messages, then ties, narrows and ends what had to stay open for that. `local` has all other descriptions.
    pub fn finish(mut self, local: &[Option<OwnedFd>]) -> Result<HashMap<DescriptionId, OwnedFd>> {
        for (id, state) in self.states.clone() {
            self.fill(id, state, local)?;
        }
        for (id, state) in self.states.clone() {
            self.tie(id, state)?;
        }
        for (id, state) in self.states.clone() {
            if Self::is_connected(state) {
                let how = [None, Some(libc::SHUT_RD), Some(libc::SHUT_WR), Some(libc::SHUT_RDWR)][usize::from(state.shutdown & 3)];
                if let Some(how) = how {
                    fd_extra::shutdown(self.made[&id].as_fd(), how).context("cannot shut a unix socket down")?;
                }
            }
            options::restore(self.made[&id].as_fd(), &state.options, self.notes);
        }
        Ok(self.made)
    }

    fn fill(&mut self, id: DescriptionId, state: &State, local: &[Option<OwnedFd>]) -> Result<()> {
        if state.queue.is_empty() {
            return Ok(());
        }
        let total: usize = state.queue.iter().map(|packet| packet.bytes.len() + 1024).sum();
        for packet in &state.queue {
            let files = packet.files.iter().map(|file| self.any(*file, local)).collect::<Result<Vec<_>>>()?;
            let sent = match self.peer_end(id, state) {
                Some(end) => send_all(end, packet, &files, &[], total),
                None => self.send_by_name(id, state, packet, &files, total),
            };
            sent.context("cannot fill a unix socket's queue")?;
        }
        Ok(())
    }

    /// The other end of a connection.
    fn peer_end(&self, id: DescriptionId, state: &State) -> Option<BorrowedFd<'_>> {
        match state.role {
            Role::Pair { peer } => self.made.get(&peer),
            _ => self.gone.get(&id),
        }
        .map(AsFd::as_fd)
    }

    /// Sends a datagram to socket `id`, through the socket that bears the sender's name.
    fn send_by_name(&self, id: DescriptionId, state: &State, packet: &Packet, files: &[BorrowedFd<'_>], total: usize) -> std::io::Result<()> {
        let from = &packet.from;
        let named = |other: &State| !from.is_empty() && other.kind == state.kind && other.name.as_ref().is_some_and(|name| name.address == *from);
        if let Some((sender, _)) = self.states.iter().find(|(_, other)| named(other)) {
            return self.reach(id, |address| send_all(self.made[sender].as_fd(), packet, files, address, total));
        }
        let stranger = fd::socket(libc::AF_UNIX, state.kind, 0)?;
        let attic = if is_path(from) { Some(Home::attic(from)?) } else { None };
        if !from.is_empty() {
            // An abstract name that its bearer has still cannot be had for this.
            let _ = bind_at(attic.as_ref(), stranger.as_fd(), from);
        }
        self.reach(id, |address| send_all(stranger.as_fd(), packet, files, address, total))
    }

    fn any<'l>(&'l self, id: DescriptionId, local: &'l [Option<OwnedFd>]) -> Result<BorrowedFd<'l>> {
        let found = self.made.get(&id).or_else(|| local.get(id)?.as_ref());
        found.map(AsFd::as_fd).ok_or_else(|| Error::refused("a descriptor of a process is on its way through a unix socket, which cannot be restored; receive it before the checkpoint"))
    }

    /// Connections to others: after the queues, since a connected datagram socket takes messages from its peer only.
    fn tie(&mut self, id: DescriptionId, state: &State) -> Result<()> {
        let socket = self.made[&id].as_fd();
        let (name, tied) = match &state.role {
            Role::Sends { peer } | Role::Pending { listener: peer } => (self.name_of(*peer)?, self.reach(*peer, |address| fd::connect(socket, address))),
            Role::SendsOutside { address } => (show(address), fd::connect(socket, address)),
            _ => return Ok(()),
        };
        if let Err(e) = tied {
            self.notes.push(format!("a unix socket could not be connected to {name} again: {e}"));
        }
        Ok(())
    }

    fn name_of(&self, id: DescriptionId) -> Result<String> {
        Ok(self.state(id)?.name.as_ref().map_or_else(String::new, |name| show(&name.address)))
    }
}

fn is_path(address: &[u8]) -> bool {
    address.get(2).is_some_and(|&first| first != 0)
}

fn bind_at(home: Option<&Home>, socket: BorrowedFd<'_>, address: &[u8]) -> std::io::Result<()> {
    match home {
        Some(home) => home.visit(|| fd::bind(socket, address)),
        None => fd::bind(socket, address),
    }
}

fn send_all(sender: BorrowedFd<'_>, packet: &Packet, files: &[BorrowedFd<'_>], to: &[u8], total: usize) -> std::io::Result<()> {
    let room = (total as i32).saturating_mul(2).max(1 << 18);
    let before = fd::sockopt::<i32>(sender, libc::SOL_SOCKET, libc::SO_SNDBUF)?;
    // Where that is refused the old size may still do.
    let _ = fd::set_sockopt(sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &room);
    let mut sent = fd::send(sender, &packet.bytes, files, to)?;
    while sent < packet.bytes.len() {
        sent += fd::send(sender, &packet.bytes[sent..], &[], to)?;
    }
    let _ = fd::set_sockopt(sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(before / 2));
    Ok(())
}

/// Removes the socket file that the first instance left, unless somebody answers there.
fn clear_stale(home: &Home, name: &Name, kind: i32) -> Result<()> {
    let path = home.file();
    let Ok(meta) = std::fs::symlink_metadata(&path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(Error::refused(format!("{} must become a unix socket again, and is another kind of file here; move it away", path.display())));
    }
    let probe = fd::socket(libc::AF_UNIX, kind | libc::SOCK_NONBLOCK, 0).context("cannot make a unix socket")?;
    match home.visit(|| fd::connect(probe.as_fd(), &name.address)) {
        Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => std::fs::remove_file(&path).at("remove the stale socket", &path),
        _ => Err(Error::refused(format!("unix socket {} is in use by another process; end that first", path.display()))),
    }
}

fn in_use(name: &Name, e: std::io::Error) -> Error {
    let shown = show(&name.address);
    if e.raw_os_error() != Some(libc::EADDRINUSE) {
        return Error::io(format!("cannot bind unix socket {shown}"), e);
    }
    let text = crate::proc::text(Path::new("/proc/net/unix")).unwrap_or_default();
    let row = text.lines().find(|line| line.ends_with(&format!(" {shown}")));
    let holder = row.and_then(|line| inet::holder_of(line.split_whitespace().nth(6)?)).unwrap_or_else(|| "another process".to_owned());
    Error::refused(format!("unix socket {shown} is in use by {holder}; end that first, or restore with --isolate"))
}
