//! One program at a time writes the frames of a name: who does is in a locked file beside them.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg};

use super::name::check_name;
use super::pending::unwritable;
use super::DirStore;
use crate::error::{Context, Error, Kind, Result};

/// Locked by the holder as long as it lives; children that it forks do not hold it.
const FILE: &str = ".session";

/// The files that this process holds: a record lock does not keep a process from itself.
static OURS: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

/// A name that is ours until this is dropped.
#[derive(Debug)]
pub struct Hold {
    key: (u64, u64),
    _file: File,
}

impl DirStore {
    /// Takes `name` for this process. `who` is what others are told of the holder: its first line in words.
    pub fn hold(&self, name: &str, who: &str) -> Result<Hold> {
        check_name(name)?;
        let dir = self.root().join(name);
        self.make_dir(&dir)?;
        let path = dir.join(FILE);
        let mut ours = OURS.lock().unwrap_or_else(PoisonError::into_inner);
        // By its path first: to close a second descriptor would lift the lock of the first.
        if path.metadata().is_ok_and(|meta| ours.contains(&(meta.dev(), meta.ino()))) {
            return Err(Error::new(Kind::Held, format!("this program has a session named {name} in {} already; close that first", self.root().display())));
        }
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path).map_err(|e| unwritable(&dir, e))?;
        match fcntl(&file, FcntlArg::F_SETLK(&whole(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => {
                let holder = text(&mut file).unwrap_or_default();
                let holder = holder.lines().next().unwrap_or("another program");
                return Err(Error::new(Kind::Held, format!("the name {name} in {} is in use by {}; wait until that ends or use another name", self.root().display(), holder)));
            }
            Err(e) => return Err(e).at("lock", &path),
        }
        file.set_len(0).and_then(|()| file.write_all(who.as_bytes())).map_err(|e| unwritable(&path, e))?;
        let meta = file.metadata().at("examine", &path)?;
        let key = (meta.dev(), meta.ino());
        ours.insert(key);
        Ok(Hold { key, _file: file })
    }

    /// What the program said that holds `name`; none if nobody does. Not for the holder itself.
    pub fn holder(&self, name: &str) -> Result<Option<String>> {
        check_name(name)?;
        let path = self.root().join(name).join(FILE);
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.at("open", &path)?,
        };
        let mut lock = whole(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).at("ask for the lock of", &path)?;
        match i32::from(lock.l_type) == libc::F_UNLCK {
            true => Ok(None),
            false => text(&mut file).map(Some).at("read", &path),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        OURS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

fn whole(kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 }
}

fn text(file: &mut File) -> std::io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.take(4096).read_to_string(&mut text)?;
    Ok(text)
}
