//! Pipes and FIFOs, with the bytes inside.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::external;
use super::scan::Found;
use super::{Capture, Description, Kind};
use crate::error::{Context, Error, Result};
use crate::resource::files::{open::Opener, FileId};
use crate::sys::fd::ioctl_get;
use crate::sys::fd_extra::{fcntl, ready, tee};

/// An end of a pipe; its access mode says which.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Index into the table of pipes.
    pub pipe: usize,
}

/// What was read out of a pipe at once: in packet mode, one packet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chunk(#[serde(with = "crate::resource::blob")] pub Vec<u8>);

/// A pipe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pipe {
    /// Device and inode, which tell pipes apart.
    pub inode: (u64, u64),
    /// Its place in the file table, if it has a name.
    pub fifo: Option<FileId>,
    /// F_GETPIPE_SZ.
    pub capacity: i32,
    /// Some end writes packets (O_DIRECT).
    pub packets: bool,
    /// What is inside.
    pub content: Vec<Chunk>,
}

const F_SETPIPE_SZ: i32 = 1031;
const F_GETPIPE_SZ: i32 = 1032;

/// Captures one end, and the pipe with its first end.
pub fn capture(capture: &mut Capture<'_>, found: &Found) -> Result<Kind> {
    if leads_outside(capture, found)? {
        let what = format!("{} ({})", if found.access() == libc::O_WRONLY { "the writing end of a pipe" } else { "the reading end of a pipe" }, found.link);
        match external::capture(capture, found, &what) {
            Some(kind) => return Ok(kind),
            None if capture.options.external_close => {}
            None => return Err(external::refuse(found, &what)),
        }
    }
    let inode = found.inode();
    if let Some(pipe) = capture.pipes.iter().position(|pipe| pipe.inode == inode) {
        return Ok(Kind::Pipe(State { pipe }));
    }
    let pipe = capture_pipe(capture, found)?;
    capture.pipes.push(pipe);
    Ok(Kind::Pipe(State { pipe: capture.pipes.len() - 1 }))
}

/// The tree lacks the other end, and yet the kernel says that it is open.
fn leads_outside(capture: &Capture<'_>, found: &Found) -> Result<bool> {
    let ends = |access| capture.scan.of_inode(found.inode()).any(|(_, other)| [access, libc::O_RDWR].contains(&other.access()));
    let (event, other_end) = match found.access() {
        libc::O_RDONLY => (libc::POLLHUP, libc::O_WRONLY),
        libc::O_WRONLY => (libc::POLLERR, libc::O_RDONLY),
        _ => return Ok(false),
    };
    if ends(other_end) {
        return Ok(false);
    }
    let state = ready(found.fd.as_fd(), libc::POLLIN | libc::POLLOUT).map_err(|e| found.failed("poll", e))?;
    // A FIFO's other end may be opened by name at any time: that it is not open now is no reason to refuse.
    Ok(state & event == 0 && found.link.starts_with("pipe:"))
}

fn capture_pipe(capture: &mut Capture<'_>, found: &Found) -> Result<Pipe> {
    let fifo = match found.link.starts_with("pipe:") {
        true => None,
        false => Some(found.intern(capture.files)?),
    };
    let capacity = fcntl(found.fd.as_fd(), F_GETPIPE_SZ, 0).map_err(|e| found.failed("measure", e))?;
    let all = || capture.scan.of_inode(found.inode()).map(|(_, end)| end);
    let content = match all().find(|end| end.access() != libc::O_WRONLY) {
        Some(reader) => peek(reader, capacity)?,
        None => Vec::new(),
    };
    Ok(Pipe { inode: found.inode(), fifo, capacity, packets: all().any(|end| end.info.flags & libc::O_DIRECT != 0), content })
}

/// Duplicates what is inside into a pipe of ours and reads it there.
fn peek(reader: &Found, capacity: i32) -> Result<Vec<Chunk>> {
    let failed = |e: std::io::Error| reader.failed("read the bytes inside", e);
    let inside = ioctl_get::<i32>(reader.fd.as_fd(), libc::FIONREAD as libc::c_ulong).map_err(failed)? as usize;
    if inside == 0 {
        return Ok(Vec::new());
    }
    let (ours, copy) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|e| failed(e.into()))?;
    // Where this is refused the copy may fall short, which is checked below.
    let _ = fcntl(copy.as_fd(), F_SETPIPE_SZ, capacity);
    let copied = tee(reader.fd.as_fd(), copy.as_fd(), inside).map_err(failed)?;
    if copied != inside {
        return Err(Error::refused(format!("{}: only {copied} of the {inside} bytes inside its pipe can be read; raise fs.pipe-max-size to {capacity}", reader.place())));
    }
    drop(copy);
    let mut chunks = Vec::new();
    let mut left = inside;
    while left > 0 {
        let mut bytes = vec![0; left];
        let n = nix::unistd::read(ours.as_fd(), &mut bytes).map_err(|e| failed(e.into()))?;
        bytes.truncate(n);
        chunks.push(Chunk(bytes));
        left -= n.min(left);
    }
    Ok(chunks)
}

/// A pipe made anew: both ends, for as long as descriptions are opened through them.
pub struct Made {
    reader: OwnedFd,
    writer: OwnedFd,
    /// The ends of a pipe that nobody has yet: the first descriptions are these very ones.
    spare: (bool, bool),
}

/// Makes a pipe anew and fills it.
pub fn make(pipe: &Pipe, opener: &mut Opener<'_>, notes: &mut Vec<String>) -> Result<Made> {
    let made = match pipe.fifo {
        None => {
            let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).context("cannot make a pipe")?;
            Made { reader, writer, spare: (true, true) }
        }
        Some(file) => {
            let reader = opener.open(file, libc::O_RDWR | libc::O_NONBLOCK)?;
            let writer = reader.try_clone().context("cannot duplicate a descriptor")?;
            Made { reader, writer, spare: (false, false) }
        }
    };
    if fcntl(made.writer.as_fd(), F_GETPIPE_SZ, 0).ok() != Some(pipe.capacity) && fcntl(made.writer.as_fd(), F_SETPIPE_SZ, pipe.capacity).is_err() {
        notes.push(format!("a pipe could not be made as large as it was ({} bytes); raise fs.pipe-max-size", pipe.capacity));
    }
    fill(pipe, &made, notes)?;
    Ok(made)
}

fn fill(pipe: &Pipe, made: &Made, notes: &mut Vec<String>) -> Result<()> {
    if pipe.fifo.is_some() && ioctl_get::<i32>(made.reader.as_fd(), libc::FIONREAD as libc::c_ulong).is_ok_and(|inside| inside > 0) {
        notes.push("a FIFO is in use by other processes: what it holds was left alone".to_owned());
        return Ok(());
    }
    let packets = if pipe.packets { libc::O_DIRECT } else { 0 };
    fcntl(made.writer.as_fd(), libc::F_SETFL, libc::O_NONBLOCK | packets).context("cannot prepare a pipe")?;
    for Chunk(bytes) in &pipe.content {
        let n = nix::unistd::write(made.writer.as_fd(), bytes).context("cannot fill a pipe")?;
        if n != bytes.len() {
            return Err(Error::refused(format!("a pipe here holds {n} bytes, not the {} of the frame; raise fs.pipe-max-size", bytes.len())));
        }
    }
    Ok(())
}

/// One end.
pub fn restore(made: &mut Made, description: &Description) -> Result<OwnedFd> {
    let access = description.flags & libc::O_ACCMODE;
    let (end, spare) = match access {
        libc::O_WRONLY => (&made.writer, &mut made.spare.1),
        _ => (&made.reader, &mut made.spare.0),
    };
    if access != libc::O_RDWR && std::mem::take(spare) {
        return end.try_clone().context("cannot duplicate an end of a pipe");
    }
    let name = format!("/proc/self/fd/{}", end.as_raw_fd());
    let file = OpenOptions::new().read(access != libc::O_WRONLY).write(access != libc::O_RDONLY).custom_flags(libc::O_NONBLOCK).open(&name);
    Ok(file.context("cannot open an end of a pipe anew")?.into())
}
