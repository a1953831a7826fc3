//! /proc/PID/fdinfo/N: what the kernel tells of a descriptor without touching it.

use std::fs::File;
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::{Context, Error, Kind, Result};
use crate::proc::{self, Pid};

/// The fdinfo files of one process: opened relative to it they cost a third less.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: File,
}

impl Directory {
    /// Opens the directory.
    pub fn open(pid: Pid) -> Result<Directory> {
        let path = proc::path(pid, "fdinfo");
        let handle = File::open(&path).at("open", &path)?;
        Ok(Directory { path, handle })
    }
}

/// One fdinfo file.
#[derive(Debug, Clone, Default)]
pub struct Info {
    /// File offset.
    pub position: i64,
    /// O_* flags, close-on-exec excepted.
    pub flags: i32,
    /// Close-on-exec, which belongs to the number and not to the description.
    pub cloexec: bool,
    /// All rows.
    pub text: String,
}

impl Info {
    /// Reads the fdinfo of number `fd` in directory `dir` (/proc/PID/fdinfo).
    pub fn read(dir: &Directory, fd: i32) -> Result<Info> {
        let failed = |e: nix::Error| Error::io(format!("cannot read {}/{fd}", dir.path.display()), e);
        // By bare system calls: the standard library asks for size and position first, which costs more than the reading.
        let file = nix::fcntl::openat(&dir.handle, fd.to_string().as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let n = nix::unistd::read(&file, &mut piece).map_err(failed)?;
            bytes.extend_from_slice(&piece[..n]);
            // The kernel writes such a file in one go: what does not fill the room is all.
            if n < piece.len() {
                break;
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Self::parse(text).ok_or_else(|| Error::new(Kind::Io, format!("cannot understand {}/{fd}", dir.path.display())))
    }

    fn parse(text: String) -> Option<Info> {
        let mut info = Info { text, ..Info::default() };
        info.position = info.row("pos")?.parse().ok()?;
        let flags = i32::from_str_radix(info.row("flags")?, 8).ok()?;
        info.cloexec = flags & libc::O_CLOEXEC != 0;
        info.flags = flags & !libc::O_CLOEXEC;
        Some(info)
    }

    /// The value of the first row `key:`.
    pub fn row(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
    }

    /// The values of all rows `key:`.
    pub fn rows<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.text.lines().filter_map(move |line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
    }

    /// A row in decimal.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.row(key)?.parse().ok()
    }

    /// A row in hexadecimal.
    pub fn hex(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.row(key)?, 16).ok()
    }
}

/// The value of `key:VALUE` or `key: VALUE` among the words of a row.
pub fn word<'a>(row: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = row;
    loop {
        let at = rest.find(key)?;
        let boundary = at == 0 || rest.as_bytes()[at - 1] == b' ';
        let tail = &rest[at + key.len()..];
        match tail.strip_prefix(':') {
            Some(value) if boundary => return value.split_whitespace().next(),
            _ => rest = tail,
        }
    }
}

/// Like [`word`], in hexadecimal.
pub fn hex_word(row: &str, key: &str) -> Option<u64> {
    u64::from_str_radix(word(row, key)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_words() {
        let info = Info::parse("pos:\t7\nflags:\t02000002\neventfd-count:                5\n".to_owned()).unwrap();
        assert_eq!((info.position, info.flags, info.cloexec, info.hex("eventfd-count")), (7, 2, true, Some(5)));
        let row = "       3 events:       1f data:         ffff  pos:0 ino:40e sdev:10";
        assert_eq!((hex_word(row, "events"), hex_word(row, "data"), hex_word(row, "ino"), hex_word(row, "no")), (Some(0x1f), Some(0xffff), Some(0x40e), None));
    }
}
