//! Unix sockets made anew: all of them first, then their queues, then what ends or narrows them.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use super::capture::{path, show};
use super::{Name, Role, State};
use crate::error::{Context, Error, Result};
use crate::resource::fd::{inet, options, DescriptionId, Descriptors, Kind};
use crate::sys::{fd, fd_extra};

/// The sockets on their way.
pub struct Workshop<'a> {
    states: Vec<(DescriptionId, &'a State)>,
    made: HashMap<DescriptionId, OwnedFd>,
    /// Other ends of sockets whose peers are gone.
    gone: HashMap<DescriptionId, OwnedFd>,
    notes: &'a mut Vec<String>,
}

/// Makes all unix sockets; their queues are left empty.
pub fn make<'a>(descriptors: &'a Descriptors, notes: &'a mut Vec<String>) -> Result<Workshop<'a>> {
    let state = |(id, description): (usize, &'a super::super::Description)| match &description.kind {
        Kind::Unix(state) => Some((id, state)),
        _ => None,
    };
    let states = descriptors.descriptions.iter().enumerate().filter_map(state).collect();
    let mut shop = Workshop { states, made: HashMap::new(), gone: HashMap::new(), notes };
    shop.singles()?;
    shop.pairs()?;
    Ok(shop)
}

impl<'a> Workshop<'a> {
    fn is_connected(state: &State) -> bool {
        matches!(state.role, Role::Pair { .. } | Role::HungUp)
    }

    /// Sockets by themselves. Those whose file was removed go first: their names may be in use again by others of the tree.
    fn singles(&mut self) -> Result<()> {
        let mut singles: Vec<_> = self.states.iter().copied().filter(|(_, state)| !Self::is_connected(state)).collect();
        singles.sort_by_key(|(_, state)| state.name.as_ref().is_some_and(|name| name.file.is_some()));
        for (id, state) in singles {
            let socket = fd::socket(libc::AF_UNIX, state.kind, 0).context("cannot make a unix socket")?;
            self.bind(socket.as_fd(), state)?;
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
                    self.bind(kept.as_fd(), state)?;
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
        let through = if inherited(first) { self.by_listener(first, second)? } else { None };
        if let Some((accepted, client)) = through {
            self.made.insert(a, accepted);
            self.made.insert(b, client);
            return Ok(());
        }
        if let Some((accepted, client)) = if inherited(second) { self.by_listener(second, first)? } else { None } {
            self.made.insert(b, accepted);
            self.made.insert(a, client);
            return Ok(());
        }
        let (one, other) = fd_extra::socketpair(first.kind).context("cannot make a pair of unix sockets")?;
        self.bind(one.as_fd(), first)?;
        self.bind(other.as_fd(), second)?;
        self.made.insert(a, one);
        self.made.insert(b, other);
        Ok(())
    }

    /// A datagram socket that sends to itself.
    fn own_peer(&mut self, id: DescriptionId, state: &State) -> Result<()> {
        let socket = fd::socket(libc::AF_UNIX, state.kind, 0).context("cannot make a unix socket")?;
        self.bind(socket.as_fd(), state)?;
        let own = fd::local_address(socket.as_fd()).context("cannot name a unix socket")?;
        fd::connect(socket.as_fd(), &own).context("cannot connect a unix socket to itself")?;
        self.made.insert(id, socket);
        Ok(())
    }

    /// Connects to the listener whose name the accepted side bears, so that it bears it again; `None` if the tree has no such listener.
    fn by_listener(&mut self, accepted: &State, client: &'a State) -> Result<Option<(OwnedFd, OwnedFd)>> {
        let Some(name) = &accepted.name else { return Ok(None) };
        let has_name = |state: &State| matches!(state.role, Role::Listening { .. }) && state.kind == accepted.kind && state.name.as_ref().is_some_and(|other| other.address == name.address);
        let Some(id) = self.states.iter().find(|(_, state)| has_name(state)).map(|(id, _)| *id) else { return Ok(None) };
        let socket = fd::socket(libc::AF_UNIX, client.kind, 0).context("cannot make a unix socket")?;
        self.bind(socket.as_fd(), client)?;
        let listener = &self.made[&id];
        let address = self.address_of(id)?;
        let reach = || -> std::io::Result<OwnedFd> {
            fd::connect(socket.as_fd(), &address)?;
            loop {
                // Strangers may have found the listener already: they are sent away, and may come again.
                let taken = fd_extra::accept(listener.as_fd())?;
                let from: libc::ucred = fd::sockopt(taken.as_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED)?;
                if from.pid == std::process::id() as i32 {
                    return Ok(taken);
                }
            }
        };
        match reach() {
            Ok(taken) => Ok(Some((taken, socket))),
            Err(e) => {
                self.notes.push(format!("a connection could not be made through {} again ({e}), so its accepted side has no name", show(&name.address)));
                Ok(None)
            }
        }
    }

    /// Where a bound socket is reached: a relative name may not lead there from where we are.
    fn address_of(&self, id: DescriptionId) -> Result<Vec<u8>> {
        fd::local_address(self.made[&id].as_fd()).context("cannot name a unix socket")
    }

    fn bind(&mut self, socket: BorrowedFd<'_>, state: &State) -> Result<()> {
        let Some(name) = &state.name else { return Ok(()) };
        if name.inherited {
            return Ok(());
        }
        let is_path = name.address.get(2).is_some_and(|&first| first != 0);
        match &name.file {
            Some(file) => {
                clear_stale(&file.path, state.kind)?;
                fd::bind(socket, &self.absolute(name, &file.path)).map_err(|e| in_use(name, e))?;
                std::fs::set_permissions(&file.path, std::fs::Permissions::from_mode(file.mode)).at("set the mode of", &file.path)?;
                std::os::unix::fs::lchown(&file.path, Some(file.uid), Some(file.gid)).at("set the owner of", &file.path)
            }
            None if is_path => {
                self.bind_removed(socket, name);
                Ok(())
            }
            None => fd::bind(socket, &name.address).map_err(|e| in_use(name, e)),
        }
    }

    fn absolute(&mut self, name: &Name, file: &Path) -> Vec<u8> {
        use std::os::unix::ffi::OsStrExt;
        if path(&name.address).is_absolute() {
            return name.address.clone();
        }
        self.notes.push(format!("unix socket {} was bound by a relative path and is now bound by {}", show(&name.address), file.display()));
        [&name.address[..2], file.as_os_str().as_bytes(), &[0]].concat()
    }

    /// The name of a file that was removed: had for an instant, if it is free.
    fn bind_removed(&mut self, socket: BorrowedFd<'_>, name: &Name) {
        let path = path(&name.address);
        let free = path.is_absolute() && std::fs::symlink_metadata(&path).is_err();
        if free && fd::bind(socket, &name.address).is_ok() {
            let _ = std::fs::remove_file(&path);
        } else {
            self.notes.push(format!("a unix socket was bound to {}, which had been removed; it has no name now", path.display()));
        }
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
            let stranger;
            let (sender, to) = match self.sender(id, state, &packet.from) {
                Some(found) => found,
                None => {
                    stranger = fd::socket(libc::AF_UNIX, state.kind, 0).context("cannot make a unix socket")?;
                    (stranger.as_fd(), self.address_of(id)?)
                }
            };
            send_all(sender, packet, &files, &to, total)?;
        }
        Ok(())
    }

    fn any<'l>(&'l self, id: DescriptionId, local: &'l [Option<OwnedFd>]) -> Result<BorrowedFd<'l>> {
        let found = self.made.get(&id).or_else(|| local.get(id)?.as_ref());
        found.map(AsFd::as_fd).ok_or_else(|| Error::refused("a descriptor of a process is on its way through a unix socket, which cannot be restored; receive it before the checkpoint"))
    }

    /// Through which socket, and to which address, a message comes to socket `id`.
    fn sender(&self, id: DescriptionId, state: &State, from: &[u8]) -> Option<(BorrowedFd<'_>, Vec<u8>)> {
        match state.role {
            Role::Pair { peer } => return Some((self.made[&peer].as_fd(), Vec::new())),
            Role::HungUp => return Some((self.gone[&id].as_fd(), Vec::new())),
            _ => {}
        }
        let named = |other: &State| !from.is_empty() && other.kind == libc::SOCK_DGRAM && other.name.as_ref().is_some_and(|name| name.address == from);
        let (sender, _) = self.states.iter().find(|(_, other)| named(other))?;
        Some((self.made[sender].as_fd(), self.address_of(id).ok()?))
    }

    /// Connections to others: after the queues, since a connected datagram socket takes messages from its peer only.
    fn tie(&mut self, id: DescriptionId, state: &State) -> Result<()> {
        let address = match &state.role {
            Role::Sends { peer } | Role::Pending { listener: peer } => self.address_of(*peer)?,
            Role::SendsOutside { address } => address.clone(),
            _ => return Ok(()),
        };
        let pending = matches!(state.role, Role::Pending { .. });
        if let Err(e) = fd::connect(self.made[&id].as_fd(), &address) {
            self.notes.push(format!("a unix socket could not be connected to {} again: {e}", show(&address)));
        } else if pending {
            self.notes.push(format!("a connection that waits to be accepted at {} was made anew, without what had been sent through it", show(&address)));
        }
        Ok(())
    }
}

fn send_all(sender: BorrowedFd<'_>, packet: &super::Packet, files: &[BorrowedFd<'_>], to: &[u8], total: usize) -> Result<()> {
    let room = (total as i32).saturating_mul(2).max(1 << 18);
    let before = fd::sockopt::<i32>(sender, libc::SOL_SOCKET, libc::SO_SNDBUF).context("cannot examine a unix socket")?;
    // Where that is refused the old size may still do.
    let _ = fd::set_sockopt(sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &room);
    let mut sent = fd::send(sender, &packet.bytes, files, to).context("cannot fill a unix socket's queue")?;
    while sent < packet.bytes.len() {
        sent += fd::send(sender, &packet.bytes[sent..], &[], to).context("cannot fill a unix socket's queue")?;
    }
    let _ = fd::set_sockopt(sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &(before / 2));
    Ok(())
}

/// Removes the socket file that the first instance left, unless somebody answers there.
fn clear_stale(path: &Path, kind: i32) -> Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(Error::refused(format!("{} must become a unix socket again, and is another kind of file here; move it away", path.display())));
    }
    let probe = fd::socket(libc::AF_UNIX, kind, 0).context("cannot make a unix socket")?;
    nix::fcntl::fcntl(&probe, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).context("cannot prepare a unix socket")?;
    use std::os::unix::ffi::OsStrExt;
    let address = [&(libc::AF_UNIX as u16).to_ne_bytes()[..], path.as_os_str().as_bytes(), &[0]].concat();
    match fd::connect(probe.as_fd(), &address) {
        Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => std::fs::remove_file(path).at("remove the stale socket", path),
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
