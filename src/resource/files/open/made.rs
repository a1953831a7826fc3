//! Files made anew, because no path leads to them.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::stat::Mode;

use super::super::{FileEntry, Handle, DELETED};
use super::open_path;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::fd_extra::open_by_handle;
use crate::sys::shm;

pub fn memfd_name(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.trim_start_matches("/memfd:").trim_end_matches(DELETED).to_owned()
}

pub fn memfd(name: &str, flags: u32) -> Result<File> {
    let name = CString::new(name).map_err(|_| Error::corrupt("a memfd's name holds a NUL"))?;
    let flags = nix::sys::memfd::MFdFlags::from_bits_retain(flags | libc::MFD_CLOEXEC);
    Ok(File::from(nix::sys::memfd::memfd_create(name.as_c_str(), flags).context("cannot make a memfd")?))
}

/// A file without a path: under its old name for an instant if that is free, so that it shows as it did.
pub fn deleted_file(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let dir = path.parent().unwrap_or(Path::new("/"));
    // The kernel's name for a file that never had one (O_TMPFILE); it can still be given one.
    if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('#')) {
        if let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
            return Ok(file);
        }
    }
    if let Ok(file) = options.clone().create_new(true).open(path) {
        fs::remove_file(path).at("remove", path)?;
        return Ok(file);
    }
    tempfile::tempfile_in(dir).or_else(|_| tempfile::tempfile()).at("make a deleted file anew in", dir)
}

/// A directory without a path: made under its old name, or in the nearest place that exists, and removed at once.
pub fn deleted_directory(path: &Path) -> Result<OwnedFd> {
    let made = fs::create_dir(path).map(|()| path.to_owned());
    let made = match made {
        Ok(made) => made,
        Err(_) => tempfile::Builder::new().tempdir().context("cannot make a deleted directory anew")?.keep(),
    };
    let fd = open_path(&made, libc::O_DIRECTORY).at("open", &made)?;
    fs::remove_dir(&made).at("remove", &made)?;
    Ok(fd)
}

pub fn create_segment(wanted: i32, segment: &shm::Segment) -> Result<i32> {
    let next = Path::new("/proc/sys/kernel/shm_next_id");
    fs::write(next, wanted.to_string()).at("choose a System V segment's id in", next)?;
    let made = shm::create(segment.key, segment.size, segment.mode).map_err(|e| Error::io(format!("cannot make System V segment {wanted}"), e))?;
    if made != wanted {
        let _ = shm::remove(made);
        return Err(Error::new(Kind::Refused, format!("System V segment id {wanted} is not to be had here (got {made}); restore with --isolate")));
    }
    Ok(made)
}

/// A FIFO without a path.
pub fn deleted_fifo(path: &Path) -> Result<OwnedFd> {
    let room = tempfile::tempdir().context("cannot make a deleted FIFO anew")?;
    let free = !path.exists() && path.parent().is_some_and(Path::exists);
    let made = if free { path.to_owned() } else { room.path().join("fifo") };
    nix::unistd::mkfifo(&made, Mode::S_IRUSR | Mode::S_IWUSR).at("make anew", &made)?;
    let fd = open_path(&made, libc::O_RDWR | libc::O_NONBLOCK).at("open", &made)?;
    fs::remove_file(&made).at("remove", &made)?;
    Ok(fd)
}

/// The very file of the frame, if its file system still has it.
pub fn by_handle(entry: &FileEntry, handle: &Handle) -> Option<OwnedFd> {
    let near = entry.path.ancestors().skip(1).find_map(|dir| File::open(dir).ok())?;
    let found = open_by_handle(near.as_fd(), handle.0, &handle.1).ok()?;
    let stat = nix::sys::stat::fstat(&found).ok()?;
    ((stat.st_dev, stat.st_ino) == (entry.device, entry.inode) && stat.st_nlink > 0).then_some(found)
}
