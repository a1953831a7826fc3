//! Where frames live. A store hands out room for a new frame, and shows it under a name only when it is whole and safe.

mod compact;
mod dir;
mod holder;
mod lineage;
mod name;
mod pending;

use std::ffi::OsString;
use std::path::PathBuf;

pub use compact::{compact, Compacted};
pub use dir::{DirStore, Located};
pub use holder::Hold;
pub use lineage::{Lineage, Parent};
pub use name::FrameRef;
pub use pending::Pending;

use crate::error::{Error, Kind, Result};
use crate::image::{Chain, Verifier, Written};

/// What every store can do; few methods, so that a test can stand in for one.
pub trait Store {
    /// Makes room for the next frame of `name`; nobody sees it before it is committed.
    fn begin(&self, name: &str) -> Result<Pending>;
    /// Brings a finished frame to stable storage and gives it the next number of its name; refused if the frame that it builds
    /// upon is not there any more.
    fn commit(&self, pending: Pending, written: &Written) -> Result<FrameRef>;
    /// All frames, or those of one name, sorted by name and number.
    fn list(&self, name: Option<&str>) -> Result<Vec<FrameRef>>;
    /// Opens a frame, with those it builds upon.
    fn open(&self, frame: &FrameRef) -> Result<Chain>;
    /// Which frame of `name` builds upon which.
    fn lineage(&self, name: &str) -> Result<Lineage>;
    /// Deletes frames; their numbers are never used again. If one of them is not there, or is needed by a frame that stays,
    /// nothing is deleted.
    fn remove_all(&self, frames: &[FrameRef]) -> Result<()>;

    /// Deletes one frame, as [`Store::remove_all`] does.
    fn remove(&self, frame: &FrameRef) -> Result<()> {
        self.remove_all(std::slice::from_ref(frame))
    }

    /// The newest frame of `name`, whole or damaged.
    fn newest(&self, name: &str) -> Result<FrameRef> {
        self.list(Some(name))?.pop().ok_or_else(|| none(name))
    }

    /// The newest frame of `name` of which every byte is as it was written, in its own file and in those it builds upon.
    fn newest_intact(&self, name: &str) -> Result<Intact> {
        let (mut skipped, mut verifier) = (Vec::new(), Verifier::default());
        for frame in self.list(Some(name))?.into_iter().rev() {
            let opened = self.open(&frame).and_then(|chain| verifier.verify(&chain, &mut |_, _| {}).map(|_| chain));
            match opened {
                Ok(chain) => return Ok(Intact { frame, chain, skipped }),
                Err(error) => skipped.push(Skipped { frame, error }),
            }
        }
        Err(match skipped.first() {
            None => none(name),
            Some(first) => {
                let what =
                    format!("none of the {} frames of {name} is intact, not even {}", skipped.len(), first.frame);
                Error::corrupt(format!("{what}: {}", first.error))
            }
        })
    }

    /// Deletes all but the newest `keep` frames of `name` and those that they build upon, the oldest chain first, and says
    /// which.
    fn retain(&self, name: &str, keep: usize) -> Result<Vec<FrameRef>> {
        if keep == 0 {
            let what = format!("cannot keep 0 frames of {name}; keep at least 1, or remove frames one by one");
            return Err(Error::new(Kind::Usage, what));
        }
        let frames = self.lineage(name)?.surplus(keep);
        self.remove_all(&frames)?;
        Ok(frames)
    }
}

/// What [`Store::newest_intact`] found.
#[derive(Debug)]
pub struct Intact {
    /// The frame.
    pub frame: FrameRef,
    /// The frame, open, with those it builds upon.
    pub chain: Chain,
    /// Newer frames that were passed over, the newest first.
    pub skipped: Vec<Skipped>,
}

/// A frame that was passed over.
#[derive(Debug)]
pub struct Skipped {
    /// Which one.
    pub frame: FrameRef,
    /// What is wrong with it.
    pub error: Error,
}

fn none(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("there is no frame of {name}; list the store to see what is there"))
}

/// The directory that is the store when nobody names another.
pub fn default_dir() -> Result<PathBuf> {
    choose_dir(|name| std::env::var_os(name), nix::unistd::geteuid().is_root())
}

fn choose_dir(variable: impl Fn(&str) -> Option<OsString>, root: bool) -> Result<PathBuf> {
    let variable = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = variable("STILLFRAME_STORE") {
        return Ok(named);
    }
    if root {
        return Ok(PathBuf::from("/var/lib/stillframe"));
    }
    // The XDG specification says to ignore relative paths.
    if let Some(state) = variable("XDG_STATE_HOME").filter(|path| path.is_absolute()) {
        return Ok(state.join("stillframe"));
    }
    match variable("HOME") {
        Some(home) => Ok(home.join(".local/state/stillframe")),
        None => {
            let what = "no store was named and $HOME is not set; set STILLFRAME_STORE to a directory";
            Err(Error::new(Kind::Usage, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(set: &[(&str, &str)], root: bool) -> Result<PathBuf> {
        let find = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        choose_dir(find, root)
    }

    #[test]
    fn default_store_follows_the_environment() {
        let named = ("STILLFRAME_STORE", "/s");
        let (state, home) = (("XDG_STATE_HOME", "/x"), ("HOME", "/h"));
        assert_eq!(choose(&[named, state, home], true).unwrap(), PathBuf::from("/s"));
        assert_eq!(choose(&[state, home], true).unwrap(), PathBuf::from("/var/lib/stillframe"));
        assert_eq!(choose(&[("STILLFRAME_STORE", ""), state, home], false).unwrap(), PathBuf::from("/x/stillframe"));
        let relative = ("XDG_STATE_HOME", "x");
        assert_eq!(choose(&[relative, home], false).unwrap(), PathBuf::from("/h/.local/state/stillframe"));
        assert_eq!(choose(&[relative], false).unwrap_err().kind(), Kind::Usage);
    }
}
