use super::*;
use std::os::fd::OwnedFd;
use std::os::fd::AsRawFd;
use crate::resource::files::open::Opener;
use crate::tracee::{blank::Blank, RemoteExt};
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions { pub to_stdio: bool }
pub struct OpenSet { fds: Vec<OwnedFd>, d: Descriptors, pub notes: Vec<String> }
impl OpenSet {
    pub fn open(d: &Descriptors, opener: &mut Opener<'_>, _o: &RestoreOptions) -> Result<OpenSet> {
        let mut fds = vec![];
        for x in &d.descriptions {
            let fd = match x.file { Some(id) => opener.open(id, x.flags)?, None => std::fs::File::open("/dev/null").unwrap().into() };
            let _ = nix::unistd::lseek(fd.as_fd(), x.position, nix::unistd::Whence::SeekSet);
            fds.push(fd);
        }
        Ok(OpenSet { fds, d: d.clone(), notes: vec![] })
    }
    pub fn install(&mut self, table: usize, blank: &mut Blank, service: i32) -> Result<()> {
        for s in &self.d.tables[table].slots {
            let n = blank.must("getfd", libc::SYS_pidfd_getfd, [service as u64, self.fds[s.description].as_raw_fd() as u64, 0,0,0,0])?;
            if n != s.fd as u64 { blank.must("dup", libc::SYS_dup3, [n, s.fd as u64, if s.cloexec { libc::O_CLOEXEC as u64 } else {0},0,0,0])?; blank.must("close", libc::SYS_close, [n,0,0,0,0,0])?; }
            else if !s.cloexec { blank.must("fcntl", libc::SYS_fcntl, [n, libc::F_SETFD as u64, 0,0,0,0])?; }
        }
        Ok(())
    }
    pub fn connect(&mut self, _t: usize, _b: &mut Blank) -> Result<()> { Ok(()) }
    pub fn arm(&mut self) -> Result<()> { Ok(()) }
}
