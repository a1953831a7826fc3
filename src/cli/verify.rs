//! `stillframe verify`.

use std::path::Path;

use super::{json, show, StoreArgs};
use crate::catalog;
use crate::error::{Error, Result};
use crate::image::{Verified, Verifier};
use crate::store::Store;

/// Check every byte of frames, and of those they build upon; fails if any is damaged
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME (the newest frame of that name), NAME@SEQ, or the path of a .frame file
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    frame: Vec<String>,
    /// Check all frames of the store
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Print one line of JSON a frame
    #[arg(long)]
    json: bool,
    /// Print only what is damaged
    #[arg(long, short)]
    quiet: bool,
}

#[derive(serde::Serialize)]
struct Verdict<'a> {
    frame: &'a str,
    ok: bool,
    bytes: Option<u64>,
    frames: Option<u64>,
    blocks: Option<u64>,
    problem: Option<String>,
}

/// Checks all that was asked for, damaged or not.
pub fn run(args: &Args) -> Result<i32> {
    let store = args.store.open()?;
    let names: Vec<String> = match args.all {
        true => store.list(None)?.iter().map(ToString::to_string).collect(),
        false => args.frame.clone(),
    };
    let (mut damaged, mut verifier) = (0, Verifier::default());
    for name in &names {
        let checked = store.resolve(name).and_then(|located| check(&located.path, &mut verifier, !args.quiet));
        damaged += usize::from(checked.is_err());
        report(args, name, checked)?;
    }
    if names.is_empty() && !args.quiet && !args.json {
        println!("no frames in {}", store.root().display());
    }
    Ok(i32::from(damaged > 0))
}

fn check(path: &Path, verifier: &mut Verifier, progress: bool) -> Result<Verified> {
    let chain = catalog::chain(path)?;
    let mut percent = show::Percent::new(progress);
    verifier.verify(&chain, &mut |done, total| percent.show(done, total))
}

fn report(args: &Args, frame: &str, checked: Result<Verified, Error>) -> Result<()> {
    if let Err(e) = &checked {
        eprintln!("stillframe: {frame}: {e}");
    }
    if args.json {
        let found = checked.as_ref().ok();
        let problem = checked.as_ref().err().map(ToString::to_string);
        println!("{}", json(&Verdict { frame, ok: found.is_some(), bytes: found.map(|v| v.bytes), frames: found.map(|v| v.frames), blocks: found.map(|v| v.blocks), problem })?);
    } else if let (Ok(verified), false) = (&checked, args.quiet) {
        let chain = if verified.frames > 1 { format!(" of {} frames", verified.frames) } else { String::new() };
        println!("{frame}: ok, {} in {}{chain}", show::bytes(verified.bytes), show::count(verified.blocks as usize, "block", "blocks"));
    }
    Ok(())
}
