//! File contents that go into a frame: private copies made at its instant, streamed after the thaw.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::error::{Context, Result};
use crate::sys::fd::ioctl_number;

const FICLONE: libc::c_ulong = 0x4004_9409;

/// One content to be streamed into the frame.
#[derive(Debug)]
pub struct Content {
    /// Its object number in the frame.
    pub object: u32,
    /// Where to read it.
    pub file: File,
    /// How many bytes.
    pub len: u64,
    /// Offset in the object of the file's first byte: the address, for pages of a mapping.
    pub base: u64,
}

/// Collects contents and numbers the objects of a frame.
#[derive(Debug)]
pub struct Contents {
    spool: PathBuf,
    next: u32,
    /// What was collected.
    pub list: Vec<Content>,
}

impl Contents {
    /// Private copies are made in directory `spool`, by reflink where it and the original share a filesystem that can.
    pub fn new(spool: PathBuf) -> Contents {
        Contents { spool, next: 0, list: Vec::new() }
    }

    /// A fresh object number.
    pub fn object(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// Copies the first `len` bytes of `file` as they are now, and `tail` behind them; returns the object that will hold them.
    pub fn copy(&mut self, file: &File, len: u64, tail: &[u8]) -> Result<u32> {
        let copy = self.spool_file()?;
        if ioctl_number(copy.as_fd(), FICLONE, file.as_raw_fd() as libc::c_ulong).is_err() {
            copy_data(file, &copy, len).context("cannot copy the content of an open file into the store")?;
        }
        copy.write_all_at(tail, len).context("cannot copy the end of a file into the store")?;
        Ok(self.later(copy, len + tail.len() as u64))
    }

    /// An empty file without a name, in the spool.
    pub fn spool_file(&self) -> Result<File> {
        tempfile::tempfile_in(&self.spool).at("make a temporary file in", &self.spool)
    }

    /// Promises the content of a file that nobody changes any more.
    pub fn later(&mut self, file: File, len: u64) -> u32 {
        let object = self.object();
        self.list.push(Content { object, file, len, base: 0 });
        object
    }
}

/// Data ranges (offset, length) of a sparse file's first `len` bytes.
pub fn data_ranges(file: &File, len: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    let mut file = file;
    while at < len {
        let start = match nix::unistd::lseek(file, at as i64, nix::unistd::Whence::SeekData) {
            Ok(start) => start as u64,
            Err(nix::Error::ENXIO) => break,
            // No notion of holes here: all is data.
            Err(_) => {
                ranges.push((at, len - at));
                break;
            }
        };
        if start >= len {
            break;
        }
        let end = nix::unistd::lseek(file, start as i64, nix::unistd::Whence::SeekHole)? as u64;
        ranges.push((start, end.min(len) - start));
        at = end;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(ranges)
}

fn copy_data(from: &File, to: &File, len: u64) -> io::Result<()> {
    // Through a handle of our own: the program's file offset is not ours to move.
    let from = File::open(format!("/proc/self/fd/{}", from.as_raw_fd()))?;
    let mut buf = vec![0; 1 << 20];
    to.set_len(len)?;
    for (start, extent) in data_ranges(&from, len)? {
        let mut done = 0;
        while done < extent {
            let want = (extent - done).min(buf.len() as u64) as usize;
            let n = from.read_at(&mut buf[..want], start + done)?;
            if n == 0 {
                break;
            }
            to.write_all_at(&buf[..n], start + done)?;
            done += n as u64;
        }
    }
    Ok(())
}
