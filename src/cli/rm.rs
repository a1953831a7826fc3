//! `stillframe rm`.

use super::StoreArgs;
use crate::error::{Error, Kind, Result};
use crate::store::{DirStore, FrameRef, Store};

/// Remove frames: NAME@SEQ…, or all frames of a name, or all but the newest
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME@SEQ; with --all or --keep, NAME
    #[arg(required = true)]
    frame: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
    /// Remove all frames of NAME
    #[arg(long, conflicts_with = "keep")]
    all: bool,
    /// Remove all but the newest N frames of NAME
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Do not print what was removed
    #[arg(long, short)]
    quiet: bool,
}

/// Removes; if anything asked for is not there, nothing is.
pub fn run(args: &Args) -> Result<i32> {
    let store = args.store.open()?;
    let doomed = match (args.all, args.keep) {
        (true, _) => frames(&store, args, 0)?,
        (_, Some(keep)) => frames(&store, args, keep as usize)?,
        _ => named(&store, &args.frame)?,
    };
    for frame in &doomed {
        store.remove(frame)?;
        if !args.quiet {
            println!("removed {frame}");
        }
    }
    Ok(0)
}

/// All but the newest `keep` frames of the names given.
fn frames(store: &DirStore, args: &Args, keep: usize) -> Result<Vec<FrameRef>> {
    let mut doomed = Vec::new();
    for name in &args.frame {
        if name.contains('@') {
            return Err(Error::new(Kind::Usage, format!("'{name}' is a single frame; with --all or --keep give a NAME, without them NAME@SEQ")));
        }
        // Fails where there is nothing, so that a slip of the pen does not look like a success.
        store.newest(name)?;
        let mut frames = store.list(Some(name))?;
        frames.truncate(frames.len().saturating_sub(keep));
        doomed.extend(frames);
    }
    Ok(doomed)
}

fn named(store: &DirStore, names: &[String]) -> Result<Vec<FrameRef>> {
    let mut doomed = Vec::new();
    for name in names {
        if !name.contains(['@', '/']) {
            return Err(Error::new(Kind::Usage, format!("{name} names no single frame; write {name}@SEQ, or rm --all {name} to remove all its frames")));
        }
        let frame: FrameRef = name.parse()?;
        store.resolve(name)?;
        doomed.push(frame);
    }
    doomed.sort_unstable();
    doomed.dedup();
    Ok(doomed)
}
