//! The frames that lie in one directory, told by their headers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::header::{FrameId, Header};
use super::reader::read_header;
use crate::error::{Context, Kind, Result};

/// How the file of a frame ends.
pub const SUFFIX: &str = ".frame";

/// Frame files of which one header after the other is read, as far as it takes to find what is asked for.
#[derive(Debug)]
pub(super) struct Family {
    dir: PathBuf,
    /// Not read yet, the next one last.
    ahead: Vec<PathBuf>,
    known: HashMap<FrameId, PathBuf>,
    /// The first whose header is damaged.
    damaged: Option<PathBuf>,
}

impl Family {
    /// The frame files beside `path`. A parent is older than its child: those before it in the order of names come first, the
    /// nearest of them to begin with.
    pub fn beside(path: &Path) -> Result<Family> {
        let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        let mut ahead = frame_files(dir)?;
        let older = ahead.partition_point(|other| other.file_name() < path.file_name());
        ahead.rotate_left(older);
        Ok(Family { dir: dir.to_owned(), ahead, known: HashMap::new(), damaged: None })
    }

    /// The file of the frame with this id; of several copies any.
    pub fn find(&mut self, id: FrameId) -> Result<Option<PathBuf>> {
        while !self.known.contains_key(&id) {
            let Some(path) = self.ahead.pop() else { return Ok(None) };
            match read_header(&path) {
                Ok(Header { id, .. }) => drop(self.known.entry(id).or_insert(path)),
                // Somebody removed it meanwhile.
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(e) if e.kind() == Kind::Corrupt => drop(self.damaged.get_or_insert(path)),
                Err(e) => return Err(e),
            }
        }
        Ok(self.known.get(&id).cloned())
    }

    /// Where the search was, and what may have been missed there.
    pub fn searched(&self) -> String {
        let dir = self.dir.display();
        match &self.damaged {
            None => format!("{dir}"),
            Some(path) => format!("{dir}, unless it is {}, whose header is damaged", path.display()),
        }
    }
}

/// Visible regular files of a directory that are called as frames are, sorted by name.
fn frame_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in dir.read_dir().at("read", dir)? {
        let path = entry.at("read", dir)?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.ends_with(SUFFIX.as_bytes()) && !name.starts_with(b".") && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}
