//! Unix sockets of a stopped tree: messages are peeked at, never taken.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::diag::{self, Row};
use super::{Name, NameFile, Packet, Role, State};
use crate::error::{Error, Result};
use crate::proc::{self, Pid};
use crate::resource::fd::scan::{Found, Scan};
use crate::resource::fd::{external, Capture, DescriptionId, Kind};
use crate::sys::fd::{self, Message};
use crate::sys::fd_extra::ready;

/// What must be known of all unix sockets before any can be described.
#[derive(Debug, Default)]
pub struct Survey {
    rows: HashMap<u64, Row>,
    /// Unix sockets of the tree by inode.
    ids: HashMap<u64, DescriptionId>,
    queues: HashMap<DescriptionId, Vec<Packet>>,
    connected: bool,
}

/// Longest message that is peeked at once; streams come in such pieces.
const LIMIT: usize = 1 << 20;

fn is_unix(found: &Found) -> bool {
    found.stat.st_mode & libc::S_IFMT == libc::S_IFSOCK && found.info.flags & libc::O_PATH == 0 && fd::sockopt::<i32>(found.fd.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN).is_ok_and(|domain| domain == libc::AF_UNIX)
}

impl Survey {
    /// Asks the kernel for peers, and reads the queues; descriptors found in them are added to `scan`.
    pub fn take(scan: &mut Scan) -> Result<Survey> {
        let mut survey = Survey::default();
        let mut id = 0;
        while id < scan.found.len() {
            if is_unix(&scan.found[id]) {
                if survey.ids.is_empty() {
                    survey.ask(&scan.holders)?;
                }
                survey.ids.insert(scan.found[id].stat.st_ino, id);
                let queue = queue(scan, id)?;
                survey.queues.insert(id, queue);
            }
            id += 1;
        }
        Ok(survey)
    }

    fn ask(&mut self, holders: &[Pid]) -> Result<()> {
        let mut asked = Vec::new();
        for &pid in holders {
            let space = proc::link(&proc::path(pid, "ns/net"))?;
            if !asked.contains(&space) {
                asked.push(space);
                let rows = diag::all(pid).map_err(|e| Error::io(format!("pid {pid}: cannot list the unix sockets of its network namespace (sock_diag; needs CONFIG_UNIX_DIAG)"), e))?;
                self.rows.extend(rows);
            }
        }
        Ok(())
    }

    /// Describes a socket.
    pub fn state(&mut self, capture: &mut Capture<'_>, found: &Found) -> Result<Kind> {
        let kind = fd::sockopt::<i32>(found.fd.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE).map_err(|e| found.failed("examine", e))?;
        let inode = found.stat.st_ino;
        let row = self.rows.get(&inode).cloned().ok_or_else(|| found.refused("a unix socket of another network namespace than its process"))?;
        let Some(role) = self.role(capture, found, kind, &row)? else {
            let what = format!("a unix socket ({})", self.partner(found));
            return external::capture(capture, found, &what).ok_or_else(|| external::refuse(found, &what));
        };
        if matches!(role, Role::Listening { .. }) && row.waiting.iter().any(|client| !self.ids.contains_key(client)) {
            capture.notes.push(format!("{}: connections from outside that wait to be accepted are not in the frame", found.place()));
        }
        self.connected |= matches!(role, Role::Pair { .. }) && kind != libc::SOCK_DGRAM;
        let name = self.name(found, kind, &row, &role)?;
        let queue = self.ids.get(&inode).and_then(|id| self.queues.remove(id)).unwrap_or_default();
        let options = capture.baselines.differences(found.fd.as_fd(), (libc::AF_UNIX, kind, 0));
        Ok(Kind::Unix(State { kind, name, role, shutdown: row.shutdown, queue, options }))
    }

    /// `None` if its peer is outside the tree.
    fn role(&self, capture: &mut Capture<'_>, found: &Found, kind: i32, row: &Row) -> Result<Option<Role>> {
        if row.state == diag::LISTEN {
            return Ok(Some(Role::Listening { backlog: row.backlog }));
        }
        let inode = found.stat.st_ino;
        if let Some(&peer) = self.ids.get(&row.peer).filter(|_| row.peer != 0) {
            let mutual = self.rows.get(&row.peer).is_some_and(|other| other.peer == inode);
            return Ok(Some(if mutual { Role::Pair { peer } } else { Role::Sends { peer } }));
        }
        // A datagram socket's own state only tells that somebody is connected with it.
        let address = fd::peer_address(found.fd.as_fd()).ok();
        match (kind, address) {
            (libc::SOCK_DGRAM, None) => return Ok(Some(Role::Idle)),
            (libc::SOCK_DGRAM, Some(address)) if address.len() > 2 => return Ok(Some(Role::SendsOutside { address })),
            (libc::SOCK_DGRAM, _) => {}
            _ if row.state != diag::ESTABLISHED => return Ok(Some(if row.shutdown == 0 { Role::Idle } else { Role::HungUp })),
            _ => {}
        }
        if let Some(listener) = self.listener_of(inode) {
            let waits = listener.map(|listener| waiting(capture, found, listener)).transpose()?;
            return Ok(waits.or(capture.options.external_close.then_some(Role::HungUp)));
        }
        let over = row.peer == 0;
        Ok((over || self.may_close(capture, found)).then_some(Role::HungUp))
    }

    fn may_close(&self, capture: &Capture<'_>, found: &Found) -> bool {
        capture.options.external_close && found.stdio.is_none()
    }

    /// The listener that socket `client` waits for: outside, or one of the tree.
    fn listener_of(&self, client: u64) -> Option<Option<DescriptionId>> {
        let (inode, _) = self.rows.iter().find(|(_, row)| row.waiting.contains(&client))?;
        Some(self.ids.get(inode).copied())
    }

    fn partner(&self, found: &Found) -> String {
        match fd::peer_address(found.fd.as_fd()) {
            Ok(address) if address.len() > 2 => format!("connected to {}", show(&address)),
            _ => "connected to a process outside".to_owned(),
        }
    }

    fn name(&self, found: &Found, kind: i32, row: &Row, role: &Role) -> Result<Option<Name>> {
        let address = fd::local_address(found.fd.as_fd()).map_err(|e| found.failed("ask for the name of", e))?;
        if address.len() <= 2 {
            return Ok(None);
        }
        // The accepted side of a connection goes by its listener's name.
        let connected = kind != libc::SOCK_DGRAM && matches!(role, Role::Pair { .. } | Role::HungUp);
        let inherited = connected && self.rows.iter().any(|(_, other)| other.state == diag::LISTEN && other.file.is_some() && other.file == row.file);
        let inherited = inherited || connected && self.abstract_listener(&address);
        let file = if inherited { None } else { name_file(found, &address) };
        Ok(Some(Name { address, file, inherited }))
    }

    /// Abstract names are one socket's only, so a connected socket with a listener's name has inherited it.
    fn abstract_listener(&self, address: &[u8]) -> bool {
        address.get(2) == Some(&0) && proc::text(Path::new("/proc/net/unix")).is_ok_and(|text| {
            let shown = String::from_utf8_lossy(&address[3..]).replace('\0', "@");
            text.lines().any(|line| line.ends_with(&format!(" @{shown}")) && line.split(' ').nth(3) == Some("00010000"))
        })
    }

    /// What a restore of these sockets cannot do, once for all.
    pub fn notes(&self, notes: &mut Vec<String>) {
        if self.connected {
            notes.push("connected unix sockets will name the restorer as their peer (SO_PEERCRED)".to_owned());
        }
    }
}

/// A connection that `listener` has yet to accept. What was sent through it is out of reach, and a server that accepts the
/// connection without it would wait for ever: then it comes back hung up.
fn waiting(capture: &mut Capture<'_>, found: &Found, listener: DescriptionId) -> Result<Role> {
    let sent = fd::ioctl_get::<i32>(found.fd.as_fd(), libc::TIOCOUTQ as libc::c_ulong).map_err(|e| found.failed("examine", e))?;
    if sent == 0 {
        return Ok(Role::Pending { listener });
    }
    capture.notes.push(format!("{}: a connection through which data was sent, but which nobody has accepted, comes back hung up", found.place()));
    Ok(Role::HungUp)
}

/// A unix address in words.
pub fn show(address: &[u8]) -> String {
    match address.get(2) {
        Some(0) => format!("@{}", String::from_utf8_lossy(&address[3..])),
        _ => path(address).display().to_string(),
    }
}

/// The path in a unix address.
pub fn path(address: &[u8]) -> PathBuf {
    let name = address.get(2..).unwrap_or_default();
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    PathBuf::from(std::ffi::OsStr::from_bytes(&name[..end]))
}

/// Asks for the file that a unix socket is bound to (SIOCUNIXFILE).
const FILE_OF: libc::c_ulong = 0x89e0;

/// The file that a bound path still leads to; `None` for abstract names and files that were removed.
fn name_file(found: &Found, address: &[u8]) -> Option<NameFile> {
    let file = fd::ioctl_number(found.fd.as_fd(), FILE_OF, 0).and_then(fd::own).ok().map(std::fs::File::from)?;
    let bound = file.metadata().ok()?;
    let name = path(address);
    let known = proc::link(&proc::path(std::process::id() as Pid, &format!("fd/{}", file.as_raw_fd()))).ok()?;
    let stands = || proc::link(&proc::path(found.holder, if name.is_absolute() { "root" } else { "cwd" })).ok();
    // The process may have changed its directory since; where links are on the way only its own path leads there.
    let leads = |home: &PathBuf| std::fs::symlink_metadata(super::join(home, &name)).is_ok_and(|meta| (meta.dev(), meta.ino()) == (bound.dev(), bound.ino()));
    let home = without(&known, &name).filter(leads).or_else(|| stands().filter(leads))?;
    Some(NameFile { home, mode: bound.mode() & 0o7777, uid: bound.uid(), gid: bound.gid() })
}

/// The directory from which `name` leads to `whole`, by their text.
fn without(whole: &Path, name: &Path) -> Option<PathBuf> {
    let tail: PathBuf = name.components().filter(|part| *part != Component::RootDir).collect();
    let depth = tail.components().count();
    whole.ends_with(&tail).then(|| whole.ancestors().nth(depth).map(Path::to_owned)).flatten()
}

fn queue(scan: &mut Scan, id: DescriptionId) -> Result<Vec<Packet>> {
    let found = &scan.found[id];
    let word = |name| fd::sockopt::<i32>(found.fd.as_fd(), libc::SOL_SOCKET, name);
    let messages = if word(libc::SO_ACCEPTCONN).is_ok_and(|listens| listens != 0) { Ok(Vec::new()) } else { word(libc::SO_TYPE).and_then(|kind| peek(found, kind)) };
    let messages = messages.map_err(|e| found.failed("peek at the messages in", e))?;
    let mut packets = Vec::new();
    for message in messages {
        let files = message.files.into_iter().map(|file| scan.add_passed(file, id)).collect::<Result<_>>()?;
        packets.push(Packet { bytes: message.bytes, from: if message.from.len() > 2 { message.from } else { Vec::new() }, files });
    }
    Ok(packets)
}

/// Looks at every message, by a peek offset that moves on; the socket's own offset is put back.
fn peek(found: &Found, kind: i32) -> std::io::Result<Vec<Message>> {
    let socket = found.fd.as_fd();
    if ready(socket, libc::POLLIN)? & libc::POLLIN == 0 {
        return Ok(Vec::new());
    }
    let before = fd::sockopt::<i32>(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
    fd::set_sockopt(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &0i32)?;
    let messages = peek_on(found, kind);
    fd::set_sockopt(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &before)?;
    messages
}

/// A stream's bytes come in runs that end with the piece that carries descriptors; where that piece begins is not to be seen.
/// The kernel passes over an empty message that was peeked at before: only the first frame of several holds it.
fn peek_on(found: &Found, kind: i32) -> std::io::Result<Vec<Message>> {
    let mut messages = Vec::new();
    let mut seen = 0;
    loop {
        let Some(mut message) = fd::receive(found.fd.as_fd(), LIMIT, libc::MSG_PEEK | libc::MSG_DONTWAIT)? else { break };
        if message.bytes.is_empty() && message.files.is_empty() && at_end(found, kind, seen)? {
            break;
        }
        if message.bytes.len() == LIMIT && kind != libc::SOCK_STREAM {
            return Err(std::io::Error::other(format!("a message is longer than {LIMIT} bytes")));
        }
        seen += message.bytes.len();
        message.bytes.shrink_to_fit();
        messages.push(message);
    }
    Ok(messages)
}

/// Whether an empty read, after `seen` bytes, is the end of a connection and no empty message.
fn at_end(found: &Found, kind: i32, seen: usize) -> std::io::Result<bool> {
    let socket = found.fd.as_fd();
    match kind {
        libc::SOCK_STREAM => Ok(true),
        libc::SOCK_DGRAM => Ok(false),
        // Once it receives no more, empty messages after all others read like the end, here as there.
        _ if ready(socket, libc::POLLRDHUP)? & libc::POLLRDHUP == 0 => Ok(false),
        _ => Ok(seen as i32 >= fd::ioctl_get::<i32>(socket, libc::FIONREAD as libc::c_ulong)?),
    }
}
