//! inotify instances: the watches come back under their old numbers; events that nobody has read are lost.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::info::{hex_word, word};
use super::scan::Found;
use super::Capture;
use crate::error::{Context, Error, Result};
use crate::proc;
use crate::sys::fd::{ioctl_get, ioctl_number};
use crate::sys::fd_extra;

const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;

/// One watch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Watch {
    /// Watch descriptor.
    pub wd: i32,
    /// What is watched.
    pub path: PathBuf,
    /// IN_*.
    pub mask: u32,
}

/// An inotify instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Its watches.
    pub watches: Vec<Watch>,
}

/// A row of fdinfo.
struct Row {
    wd: i32,
    inode: u64,
    device: u64,
    mask: u32,
    handle: Option<(i32, Vec<u8>)>,
}

fn row(text: &str) -> Option<Row> {
    let text = text.strip_prefix("inotify ")?;
    let bytes = |digits: &str| -> Option<Vec<u8>> { (0..digits.len() / 2).map(|i| u8::from_str_radix(digits.get(2 * i..2 * i + 2)?, 16).ok()).collect() };
    let handle = word(text, "f_handle").and_then(bytes);
    Some(Row {
        wd: hex_word(text, "wd")? as i32,
        inode: hex_word(text, "ino")?,
        device: hex_word(text, "sdev")?,
        mask: hex_word(text, "mask")? as u32,
        handle: handle.and_then(|handle| Some((hex_word(text, "fhandle-type")? as i32, handle))),
    })
}

/// Captures an instance.
pub fn capture(capture: &mut Capture<'_>, found: &Found) -> Result<State> {
    if ioctl_get::<i32>(found.fd.as_fd(), libc::FIONREAD as libc::c_ulong).is_ok_and(|waiting| waiting > 0) {
        capture.notes.push(format!("{}: inotify events that nobody has read are not in the frame", found.place()));
    }
    let mut watches = Vec::new();
    for row in found.info.text.lines().filter_map(row) {
        let path = locate(found, &row).ok_or_else(|| {
            Error::refused(format!("{} watches inode {} of device {:#x} by inotify, and its path cannot be learnt (file system without handles, or the file is gone); remove watch {} before the checkpoint", found.place(), row.inode, row.device, row.wd))
        })?;
        watches.push(Watch { wd: row.wd, path, mask: row.mask });
    }
    watches.sort_by_key(|watch| watch.wd);
    Ok(State { watches })
}

/// The path of a watched inode, by its handle through some mount of its file system.
fn locate(found: &Found, row: &Row) -> Option<PathBuf> {
    let (kind, handle) = row.handle.as_ref()?;
    // The kernel's own device numbers carry 20 bits of minor.
    let device = format!("{}:{}", row.device >> 20, row.device & 0xf_ffff);
    let mounts = proc::text(&proc::path(found.holder, "mountinfo")).ok()?;
    mounts.lines().filter_map(|line| mount_point(line, &device)).find_map(|point| {
        let visible = proc::path(found.holder, "root").join(point.strip_prefix("/").unwrap_or(&point));
        let mount = File::open(visible).ok()?;
        let file = fd_extra::open_by_handle(mount.as_fd(), *kind, handle).ok()?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        (path.is_absolute() && !path.as_os_str().as_bytes().ends_with(b" (deleted)")).then_some(path)
    })
}

fn mount_point(line: &str, device: &str) -> Option<PathBuf> {
    let words: Vec<&str> = line.split(' ').collect();
    (words.get(2) == Some(&device)).then(|| Path::new(&words.get(4).copied().unwrap_or("/").replace("\\040", " ")).to_owned())
}

/// Makes an instance without watches; that all paths exist is checked.
pub fn restore(state: &State) -> Result<OwnedFd> {
    for watch in &state.watches {
        std::fs::symlink_metadata(&watch.path).at("find what inotify watched,", &watch.path)?;
    }
    fd_extra::watcher().context("cannot make an inotify instance (fs.inotify.max_user_instances?)")
}

/// Adds the watches; last, so that the restore itself is not seen.
pub fn arm(state: &State, fd: &OwnedFd) -> Result<()> {
    for watch in &state.watches {
        let path = CString::new(watch.path.as_os_str().as_bytes()).map_err(|_| Error::corrupt("an inotify watch's path holds a NUL"))?;
        ioctl_number(fd.as_fd(), INOTIFY_IOC_SETNEXTWD, watch.wd as libc::c_ulong).context("cannot choose a watch descriptor (needs CONFIG_CHECKPOINT_RESTORE)")?;
        let got = fd_extra::watch(fd.as_fd(), &path, watch.mask).at("watch", &watch.path)?;
        if got != watch.wd {
            return Err(Error::refused(format!("the inotify watch of {} became {got}, not {}: two watched paths are one file here", watch.path.display(), watch.wd)));
        }
    }
    Ok(())
}
