//! `stillframe rm`.

use super::{show, StoreArgs};
use crate::error::{Error, Kind, Result};
use crate::store::{DirStore, FrameRef, Store};

/// Remove frames: NAME@SEQ…, or all frames of a name, or all but the newest and those they build upon
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
    /// Remove all but the newest N frames of NAME, and those that they build upon
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// Do not print what was removed
    #[arg(long, short)]
    quiet: bool,
}

/// Removes; if anything asked for is not there, or is needed by a frame that stays, nothing is.
pub fn run(args: &Args) -> Result<i32> {
    let store = args.store.open()?;
    let (doomed, needed) = match (args.all, args.keep) {
        (true, _) => frames(&store, args, 0)?,
        (_, Some(keep)) => frames(&store, args, keep as usize)?,
        _ => (named(&store, &args.frame)?, 0),
    };
    store.remove_all(&doomed)?;
    if !args.quiet {
        doomed.iter().for_each(|frame| println!("removed {frame}"));
        if needed > 0 {
            println!("kept {}, which newer ones build upon", show::count(needed, "older frame", "older frames"));
        }
    }
    Ok(0)
}

/// All but the newest `keep` frames of the names given, and those that they build upon, which are counted.
fn frames(store: &DirStore, args: &Args, keep: usize) -> Result<(Vec<FrameRef>, usize)> {
    let (mut doomed, mut needed) = (Vec::new(), 0);
    for name in &args.frame {
        if name.contains('@') {
            return Err(Error::new(Kind::Usage, format!("'{name}' is a single frame; with --all or --keep give a NAME, without them NAME@SEQ")));
        }
        // Fails where there is nothing, so that a slip of the pen does not look like a success.
        store.newest(name)?;
        let older = store.list(Some(name))?.len().saturating_sub(keep);
        let surplus = store.lineage(name)?.surplus(keep);
        needed += older.saturating_sub(surplus.len());
        doomed.extend(surplus);
    }
    Ok((doomed, needed))
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
