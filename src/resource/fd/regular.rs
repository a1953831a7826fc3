//! Regular files, directories, harmless devices and O_PATH handles, by way of the file table; files of /proc and its kin by path.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::scan::Found;
use super::{Capture, Description, Kind};
use crate::error::{Context, Result};
use crate::proc::Pid;
use crate::resource::files::{open::Opener, FileId, FileKind};

/// A description of a file in the file table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Which file.
    pub file: FileId,
}

/// A file that the kernel makes up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kernel {
    /// Its path.
    pub path: PathBuf,
    /// The process of the tree that it tells of, as the tree numbers it: it can only be opened once that lives.
    pub process: Option<Pid>,
}

const NSFS: i64 = 0x6e73_6673;
const SECRET: i64 = 0x5345_434d;
/// proc, sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs.
const MADE_UP: [i64; 7] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x6462_6720, 0x7472_6163, 0x7363_6673];

/// Devices without a state of their own: null, zero, full, random, urandom, kmsg.
const HARMLESS: [u32; 6] = [3, 5, 7, 8, 9, 11];

/// Captures a file, directory, device or O_PATH handle.
pub fn capture(capture: &mut Capture<'_>, found: &Found) -> Result<Kind> {
    match capture.file_system(found)? {
        NSFS => return Err(found.refused(&format!("a handle on a namespace ({})", found.link))),
        SECRET => return Err(found.refused("secret memory (memfd_secret)")),
        magic if MADE_UP.contains(&magic) => return kernel(capture, found),
        _ => {}
    }
    check(found)?;
    let file = found.intern(capture.files)?;
    let entry = &mut capture.files.entries[file];
    if entry.kind == FileKind::Regular && found.info.flags & libc::O_PATH == 0 {
        entry.reach = entry.reach.max(found.info.position as u64);
        entry.written |= found.access() != libc::O_RDONLY;
    }
    Ok(Kind::File(State { file }))
}

fn check(found: &Found) -> Result<()> {
    let device = (nix::sys::stat::major(found.stat.st_rdev) as u32, nix::sys::stat::minor(found.stat.st_rdev) as u32);
    let path_only = found.info.flags & libc::O_PATH != 0;
    match found.stat.st_mode & libc::S_IFMT {
        libc::S_IFCHR | libc::S_IFBLK if path_only => Ok(()),
        libc::S_IFCHR if device.0 == 1 && HARMLESS.contains(&device.1) => Ok(()),
        libc::S_IFCHR | libc::S_IFBLK => Err(found.refused(&format!("device {} ({}:{}), whose state only its driver knows", found.link, device.0, device.1))),
        _ => Ok(()),
    }
}

fn kernel(capture: &mut Capture<'_>, found: &Found) -> Result<Kind> {
    let number = found.link.strip_prefix("/proc/").and_then(|rest| rest.split('/').next()).and_then(|word| word.parse::<Pid>().ok());
    let Some(pid) = number else { return Ok(Kind::Kernel(Kernel { path: PathBuf::from(&found.link), process: None })) };
    if !capture.in_tree(pid) {
        return Err(found.refused(&format!("{}, of a process outside the tree", found.link)));
    }
    let inner = capture.inner(pid).unwrap_or(pid);
    let path = found.link.replacen(&pid.to_string(), &inner.to_string(), 1);
    Ok(Kind::Kernel(Kernel { path: PathBuf::from(path), process: Some(inner) }))
}

/// Opens a file of the file table.
pub fn restore(state: &State, description: &Description, opener: &mut Opener<'_>) -> Result<OwnedFd> {
    let entry = opener.entry(state.file)?;
    let fd = opener.open(state.file, open_flags(description.flags, &entry.kind))?;
    seek(&fd, description).at("seek in", &entry.path)?;
    Ok(fd)
}

/// What open(2) must be told: flags that name a way to open, not a property of what was opened, are left out.
fn open_flags(flags: i32, kind: &FileKind) -> i32 {
    let mut flags = flags & !(libc::O_ASYNC | libc::O_NOFOLLOW);
    if *kind == FileKind::Other {
        flags |= libc::O_NOFOLLOW;
    }
    if *kind != FileKind::Directory {
        flags &= !libc::O_TMPFILE;
    }
    flags
}

fn seek(fd: &OwnedFd, description: &Description) -> std::io::Result<()> {
    if description.position != 0 && description.flags & libc::O_PATH == 0 {
        nix::unistd::lseek(fd.as_fd(), description.position, nix::unistd::Whence::SeekSet)?;
    }
    Ok(())
}

/// Opens a file that the kernel makes up.
pub fn restore_kernel(state: &Kernel, description: &Description) -> Result<OwnedFd> {
    let access = description.flags & libc::O_ACCMODE;
    let flags = description.flags & !(libc::O_ACCMODE | libc::O_ASYNC | libc::O_NOFOLLOW);
    let file = OpenOptions::new().read(access != libc::O_WRONLY).write(access != libc::O_RDONLY).custom_flags(flags).open(&state.path);
    let fd = OwnedFd::from(file.at("open", &state.path)?);
    // Some of them have no offset that could be set.
    let _ = seek(&fd, description);
    Ok(fd)
}
