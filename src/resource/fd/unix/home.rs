//! Where the names of unix sockets are good: calls that take one are made from where the process stood.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::capture::path;
use super::join;

/// The root or working directory to use a socket's name from. Visits change our own: we have a single thread.
#[derive(Debug)]
pub struct Home {
    directory: PathBuf,
    name: PathBuf,
    /// Goes, with the socket's file, when the home does.
    attic: Option<TempDir>,
}

impl Home {
    /// The home of a name that leads to a file.
    pub fn new(directory: &Path, address: &[u8]) -> Home {
        Home { directory: directory.to_owned(), name: path(address), attic: None }
    }

    /// A home for a name whose file was removed, and which may be in use again: nobody else sees it there.
    pub fn attic(address: &[u8]) -> io::Result<Home> {
        let attic = tempfile::tempdir()?;
        let home = Home { directory: attic.path().to_owned(), name: path(address), attic: Some(attic) };
        let name = home.name.clone();
        home.visit(|| name.parent().map_or(Ok(()), std::fs::create_dir_all))?;
        Ok(home)
    }

    /// The socket's file, from where we are.
    pub fn file(&self) -> PathBuf {
        join(&self.directory, &self.name)
    }

    /// Does something from there.
    pub fn visit<T>(&self, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let (top, here) = (open("/")?, open(".")?);
        let done = self.enter().and_then(|()| action());
        if self.moves_root() {
            nix::unistd::fchdir(top.as_fd())?;
            std::os::unix::fs::chroot(".")?;
        }
        nix::unistd::fchdir(here.as_fd())?;
        done
    }

    fn enter(&self) -> io::Result<()> {
        std::env::set_current_dir(&self.directory)?;
        if self.moves_root() { std::os::unix::fs::chroot(".") } else { Ok(()) }
    }

    /// A relative name in an attic could climb out of it.
    fn moves_root(&self) -> bool {
        let fenced = self.name.is_absolute() || self.attic.is_some();
        fenced && self.directory.as_os_str().as_bytes() != b"/"
    }
}

fn open(path: &str) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path)
}
