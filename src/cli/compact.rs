//! `stillframe compact`.

use super::{show, StoreArgs};
use crate::error::{Error, Kind, Result};
use crate::image::Compression;
use crate::store::{compact, Compacted, DirStore, FrameRef, Store};

/// Make an increment a full frame, in its place: same content, same number, and it builds upon no other frame any more
///
/// Frames that build upon it stay as they are. What a full frame holds without need goes, too. Until the new file is whole and
/// safe, the old one stays; a crash leaves the one or the other.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME (the newest frame of that name), NAME@SEQ, or the path of a .frame file
    frame: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Then remove the frames that it was built upon, as far as no other frame needs them
    #[arg(long)]
    prune: bool,
    /// Compression of pages: none, zstd, zstd:LEVEL (1 to 19) or auto
    #[arg(long, value_name = "HOW", default_value = "auto")]
    compress: Compression,
    /// Say nothing but what goes wrong
    #[arg(long, short)]
    quiet: bool,
}

/// Rewrites; then removes, if that is wanted.
pub fn run(args: &Args) -> Result<i32> {
    let located = args.store.open()?.resolve(&args.frame)?;
    let below = if args.prune { below(&located.path)? } else { None };
    let mut percent = show::Percent::new(!args.quiet);
    let compacted = compact(&located.path, args.compress, &mut |done, total| percent.show(done, total))?;
    drop(percent);
    let say = |words: String| if !args.quiet { println!("{words}") };
    let title = located.frame.map_or(args.frame.clone(), |frame| frame.to_string());
    say(format!("{title}: {}", outcome(compacted.as_ref())));
    if let Some((store, frames)) = below {
        let pruned = store.prune(&frames)?;
        pruned.iter().for_each(|frame| say(format!("removed {frame}")));
        if pruned.len() < frames.len() {
            say(format!("kept {}, which other frames build upon", show::count(frames.len() - pruned.len(), "frame", "frames")));
        }
    }
    Ok(0)
}

fn outcome(compacted: Option<&Compacted>) -> String {
    match compacted {
        None => "a full frame already, and nothing in it is without need".to_owned(),
        Some(Compacted { frames, bytes_before, bytes }) => {
            format!("{}, {}, now one full frame of {}", show::count(*frames, "frame", "frames"), show::bytes(*bytes_before), show::bytes(*bytes))
        }
    }
}

/// The frames of a store that the one at `path` is built upon, the nearest first.
fn below(path: &std::path::Path) -> Result<Option<(DirStore, Vec<FrameRef>)>> {
    let path = path.canonicalize().map_err(|e| Error::io(format!("cannot find {}", path.display()), e))?;
    let Some((store, frame)) = DirStore::of(&path) else {
        let what = format!("{} is not in a store, so that nobody knows who needs the frames that it is built upon", path.display());
        return Err(Error::new(Kind::Usage, format!("{what}; compact it without --prune")));
    };
    let frames = store.lineage(frame.name())?.chain(&frame).into_iter().skip(1).collect();
    Ok(Some((store, frames)))
}
