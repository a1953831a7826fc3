//! A frame on its way into the store: a hidden file that goes away unless it is committed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{fchown, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tempfile::NamedTempFile;

use super::name::check_name;
use crate::error::{Context, Error, Kind, Result};
use crate::image::{FrameWriter, Header, Written};

/// How the file of a frame in the making starts; the dot keeps it out of every listing.
const PREFIX: &str = ".partial-";

/// Room for one frame; dropped without a commit, it leaves nothing behind.
#[derive(Debug)]
pub struct Pending {
    name: String,
    hidden: Hidden,
}

impl Pending {
    /// A hidden file in `dir`; the caller keeps sweepers out until this returns.
    pub fn create(name: &str, dir: &Path) -> Result<Self> {
        check_name(name)?;
        Ok(Pending { name: name.to_owned(), hidden: Hidden::create(dir)? })
    }

    /// The name that the frame will be found under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the bytes are until they are committed.
    pub fn path(&self) -> &Path {
        self.hidden.path()
    }

    /// Starts to write the frame.
    pub fn writer(&self, header: &Header) -> Result<FrameWriter> {
        self.hidden.writer(header)
    }

    /// Brings every byte of the finished frame to stable storage.
    pub fn sync(&self, written: &Written) -> Result<()> {
        self.hidden.sync(written)
    }

    /// Gives the file its final name, unless that name is taken.
    pub fn publish(self, path: &Path) -> io::Result<()> {
        self.hidden.file.persist_noclobber(path).map(drop).map_err(|e| e.error)
    }
}

/// A file that no listing shows, and that goes away when dropped.
#[derive(Debug)]
pub(super) struct Hidden {
    file: NamedTempFile,
    /// Held as long as the writer lives, so that others can tell a frame in the making from a leftover.
    _alive: Flock<File>,
}

impl Hidden {
    /// One in `dir`; the caller keeps sweepers out until this returns.
    pub fn create(dir: &Path) -> Result<Self> {
        let file = tempfile::Builder::new().prefix(PREFIX).tempfile_in(dir).map_err(|e| unwritable(dir, e))?;
        let alive = file.as_file().try_clone().at("share", file.path())?;
        let alive = lock(alive, FlockArg::LockExclusiveNonblock).at("lock", file.path())?;
        Ok(Hidden { file, _alive: alive })
    }

    pub fn path(&self) -> &Path {
        self.file.path()
    }

    pub fn writer(&self, header: &Header) -> Result<FrameWriter> {
        let file = self.file.as_file().try_clone().at("share", self.path())?;
        FrameWriter::create(file, self.path(), header)
    }

    /// Brings every byte of the finished frame to stable storage.
    pub fn sync(&self, written: &Written) -> Result<()> {
        let file = self.file.as_file();
        let bytes = file.metadata().at("examine", self.path())?.len();
        if bytes != written.bytes {
            let path = self.path().display();
            let what = format!("{path} has {bytes} bytes, its frame {}; commit only finished frames", written.bytes);
            return Err(Error::new(Kind::Usage, what));
        }
        file.sync_all().map_err(|e| unwritable(self.path(), e))
    }

    /// Gives the file the rights and the owner of another.
    pub fn take_after(&self, path: &Path) -> Result<()> {
        let old = path.symlink_metadata().at("examine", path)?;
        // Whoever may replace a file but not give his own away keeps it.
        let _ = fchown(self.file.as_file(), Some(old.uid()), Some(old.gid()));
        self.file.as_file().set_permissions(old.permissions()).map_err(|e| unwritable(path, e))
    }

    /// Puts the file in the place of another.
    pub fn replace(self, path: &Path) -> io::Result<()> {
        self.file.persist(path).map(drop).map_err(|e| e.error)
    }
}

/// Removes the files that writers left behind who died before they could commit.
pub(super) fn sweep(dir: &Path) -> Result<()> {
    for entry in dir.read_dir().at("read", dir)? {
        let entry = entry.at("read", dir)?;
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) && abandoned(&entry.path()) {
            // A leftover that cannot be removed wastes room but harms no frame.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Whether nobody holds the lock that a living writer holds.
fn abandoned(path: &Path) -> bool {
    // For writing, because network file systems grant an exclusive lock on nothing less.
    let file = OpenOptions::new().write(true).open(path);
    file.is_ok_and(|file| lock(file, FlockArg::LockExclusiveNonblock).is_ok())
}

/// Takes a lock, undisturbed by signals.
pub(super) fn lock(mut file: File, how: FlockArg) -> io::Result<Flock<File>> {
    loop {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EINTR)) => file = back,
            Err((_, e)) => return Err(e.into()),
        }
    }
}

/// A failure to write below `path`, with what the user can do about it.
pub(super) fn unwritable(path: &Path, e: io::Error) -> Error {
    let (what, advice) = match e.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => ("full", "free some space there or name another store"),
        Some(libc::EROFS | libc::EACCES | libc::EPERM) => ("not writable", "name another store or run as its owner"),
        _ => return Error::io(format!("cannot write to the store at {}", path.display()), e),
    };
    Error::io(format!("the store at {} is {what} ({advice})", path.display()), e)
}
