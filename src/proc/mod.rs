//! Floor 0: what /proc tells about a process. Parsers are pure functions over text; every error carries its path.

pub mod maps;
pub mod offsets;
pub mod stat;
pub mod status;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result};

/// A process or thread id as the kernel of this namespace numbers it.
pub type Pid = i32;

/// `/proc/PID/what`.
pub fn path(pid: Pid, what: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{what}"))
}

/// The text of a file in /proc, lossily decoded.
pub fn text(path: &Path) -> Result<String> {
    match bytes(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        // A file of a process that is gone says ENOENT or ESRCH, depending on the instant.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) && path.starts_with("/proc") => {
            Err(Error::new(Kind::TargetGone, format!("cannot read {}: the process is gone", path.display())))
        }
        Err(e) => Err(e).at("read", path),
    }
}

/// Unlike `fs::read` it asks for no size, which files in /proc do not have.
fn bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    fs::File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Numbered entries of a directory such as /proc/PID/task or /proc/PID/fd, ascending.
pub fn numbers(dir: &Path) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Thread ids of a process.
pub fn threads(pid: Pid) -> Result<Vec<Pid>> {
    numbers(&path(pid, "task"))
}

/// Direct children of all threads of a process.
pub fn children(pid: Pid) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for tid in threads(pid)? {
        match text(&path(pid, &format!("task/{tid}/children"))) {
            Ok(list) => found.extend(list.split_whitespace().filter_map(|pid| pid.parse::<Pid>().ok())),
            Err(e) if e.kind() == Kind::TargetGone => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Where a link in /proc points.
pub fn link(path: &Path) -> Result<PathBuf> {
    fs::read_link(path).at("read the link", path)
}

fn bad(what: &str, line: &str) -> Error {
    Error::new(Kind::Io, format!("cannot understand {what}: {line:?}"))
}
