//! A frame made full in its place: rewritten beside it, then renamed over it.

use std::path::Path;

use super::dir::{lock_store, sync_dir};
use super::pending::{unwritable, Hidden};
use crate::error::{Error, Kind, Result};
use crate::image::{read_header, Chain, Compression, Header};

/// What became of a frame that was made full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compacted {
    /// Frames that it was read from, itself included.
    pub frames: usize,
    /// Length of all their files.
    pub bytes_before: u64,
    /// Length of its file now.
    pub bytes: u64,
}

/// Rewrites the frame at `path` as a full one with the same id and content, so that it builds upon none and frames that build
/// upon it still do; nothing if there is nothing to gain. At every moment the old or the new file is there, and whole.
pub fn compact(path: &Path, compression: Compression, progress: &mut dyn FnMut(u64, u64)) -> Result<Option<Compacted>> {
    let chain = Chain::open(path)?;
    if chain.is_compact() {
        return Ok(None);
    }
    if path.is_symlink() {
        return Err(Error::new(Kind::Usage, format!("{} is a symbolic link; name the frame that it leads to", path.display())));
    }
    let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    let lock = lock_store(dir)?;
    let hidden = Hidden::create(dir)?;
    drop(lock);
    hidden.take_after(path)?;
    let mut writer = hidden.writer(&Header { parent: None, ..chain.header().clone() })?;
    chain.rewrite(&mut writer, compression, progress)?;
    let written = writer.finish(chain.manifest())?;
    hidden.sync(&written)?;
    let _lock = lock_store(dir)?;
    check_unchanged(path, chain.header())?;
    hidden.replace(path).map_err(|e| unwritable(path, e))?;
    sync_dir(dir)?;
    Ok(Some(Compacted { frames: chain.frames().len(), bytes_before: chain.bytes(), bytes: written.bytes }))
}

/// A frame that was removed meanwhile must not come back.
fn check_unchanged(path: &Path, header: &Header) -> Result<()> {
    match read_header(path) {
        Ok(now) if now.id == header.id => Ok(()),
        Err(e) if e.kind() != Kind::NotFound => Err(e),
        _ => Err(Error::new(Kind::NotFound, format!("{} was removed while it was rewritten; nothing is left to do", path.display()))),
    }
}
