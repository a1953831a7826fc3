//! Reading and writing another process's memory in bulk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::error::{Context, Error, Kind, Result};
use crate::proc::{path, Pid};
use crate::sys::process_vm;

/// The memory of one process.
pub struct Memory {
    pid: Pid,
    /// /proc/PID/mem: reaches pages that their owner may not read or write.
    mem: File,
}

impl Memory {
    /// Opens the memory of `pid`, which we trace.
    pub fn open(pid: Pid) -> Result<Memory> {
        let name = path(pid, "mem");
        let mem = OpenOptions::new().read(true).write(true).open(&name).at("open", &name)?;
        Ok(Memory { pid, mem })
    }

    /// Reads all of `buf` at `address`, whatever the protection there.
    pub fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        self.gather(&[(address, buf.len())], buf)
    }

    /// Reads `ranges` one behind the other into all of `buf`.
    pub fn gather(&self, ranges: &[(u64, usize)], buf: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        for group in ranges.chunks(process_vm::MAX_RANGES) {
            let len: usize = group.iter().map(|range| range.1).sum();
            let target = &mut buf[filled..filled + len];
            if self.read_whole(group, target) != len {
                self.gather_by_file(group, target)?;
            }
            filled += len;
        }
        Ok(())
    }

    /// Reads `ranges`, of which there are [`MAX_RANGES`](process_vm::MAX_RANGES) at most, one behind the other into `buf`, up to the
    /// first that cannot be read whole: returns how many bytes. See [`read_some`](Self::read_some) for what that may change.
    pub fn read_whole(&self, ranges: &[(u64, usize)], buf: &mut [u8]) -> usize {
        let read = process_vm::read(self.pid, ranges, buf).unwrap_or(0);
        let ends = ranges.iter().scan(0, |end, range| {
            *end += range.1;
            Some(*end)
        });
        ends.take_while(|end| *end <= read).last().unwrap_or(0)
    }

    /// Reads the first part of `buf` at `address`, whatever the protection there, up to a page that is absent: returns its length,
    /// 0 where the first page is. Only a process that is gone, or that runs another program by now, is an error.
    ///
    /// For reading all of a memory: nothing changes there. [`gather`](Self::gather) is a third faster but pins pages, and the kernel
    /// gives a page that is shared with a fork a copy of its own before it is pinned.
    pub fn read_some(&self, address: u64, buf: &mut [u8]) -> Result<usize> {
        loop {
            match self.mem.read_at(buf, address) {
                Ok(0) if !buf.is_empty() => return Err(super::gone(self.pid)),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(0),
                read => return read.map_err(|e| self.failed("read", address, buf.len(), e)),
            }
        }
    }

    /// The error for a page that is absent where none may be.
    pub fn absent(&self, address: u64) -> Error {
        Error::new(Kind::Io, format!("pid {}: there is no memory at {address:#x}", self.pid))
    }

    /// Whose memory it is.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    fn gather_by_file(&self, ranges: &[(u64, usize)], mut buf: &mut [u8]) -> Result<()> {
        for &(address, len) in ranges {
            let (part, rest) = buf.split_at_mut(len);
            self.mem.read_exact_at(part, address).map_err(|e| self.failed("read", address, len, e))?;
            buf = rest;
        }
        Ok(())
    }

    /// Writes `bytes` at `address`, which must be writable by its owner or private.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        if process_vm::write(self.pid, &[(address, bytes.len())], bytes).ok() == Some(bytes.len()) {
            return Ok(());
        }
        self.force(address, bytes)
    }

    /// Writes `bytes` at `address` even where the mapping is read-only: a private copy is made, as for a breakpoint.
    pub fn force(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.mem.write_all_at(bytes, address).map_err(|e| self.failed("write", address, bytes.len(), e))
    }

    fn failed(&self, verb: &str, address: u64, len: usize, e: std::io::Error) -> Error {
        Error::io(format!("pid {}: cannot {verb} {len} bytes of memory at {address:#x}", self.pid), e)
    }
}
