//! Reading and writing another process's memory in bulk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use crate::error::{Context, Error, Result};
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
            if process_vm::read(self.pid, group, target).ok() != Some(len) {
                self.gather_by_file(group, target)?;
            }
            filled += len;
        }
        Ok(())
    }

    /// Reads `ranges` one behind the other into `buf`, as far as it goes: returns the bytes read, which stop at the first page that
    /// is absent or that its owner may not read. Only a process that is gone is an error.
    pub fn read_some(&self, ranges: &[(u64, usize)], buf: &mut [u8]) -> Result<usize> {
        match process_vm::read(self.pid, ranges, buf) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Err(super::gone(self.pid)),
            read => Ok(read.unwrap_or(0)),
        }
    }

    /// Reads the first part of `buf` at `address`, whatever the protection there, up to a page that is absent; returns its length, at least 1.
    pub fn force_some(&self, address: u64, buf: &mut [u8]) -> Result<usize> {
        match self.mem.read_at(buf, address) {
            Ok(0) => Err(self.failed("read", address, buf.len(), std::io::ErrorKind::UnexpectedEof.into())),
            read => read.map_err(|e| self.failed("read", address, buf.len(), e)),
        }
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
