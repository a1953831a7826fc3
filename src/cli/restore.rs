//! `stillframe restore`.

use super::StoreArgs;
use crate::error::Result;
use crate::hooks::{Hook, Hooks};
use crate::resource::fd::restore::RestoreOptions;
use crate::resource::files::open::Policy;
use crate::restore::{restore, Loaded, Options};

/// Bring a frame back as a running second instance, with its original process ids
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME (the newest frame of that name), NAME@SEQ, or the path of a .frame file
    frame: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Return when the instance runs, and print its process id
    #[arg(long)]
    detach: bool,
    /// Accept mapped files that differ from the frame's, and a processor that lacks features
    #[arg(long)]
    allow_changed: bool,
    /// Refuse any difference of any file
    #[arg(long)]
    strict_files: bool,
    /// Connect descriptors 0, 1 and 2 that led out of the tree to ours
    #[arg(long)]
    to_stdio: bool,
    /// Run COMMAND by sh at an event: restored
    #[arg(long, value_name = "EVENT=COMMAND")]
    hook: Vec<Hook>,
}

/// Restores.
pub fn run(args: &Args) -> Result<i32> {
    let located = args.store.open()?.resolve(&args.frame)?;
    let frame = Loaded::open(&located.path)?;
    let options = Options {
        files: Policy { allow_changed: args.allow_changed, strict: args.strict_files, saved: false },
        descriptors: RestoreOptions { to_stdio: args.to_stdio, ..RestoreOptions::default() },
        hooks: Hooks(args.hook.clone()),
    };
    let restored = restore(&frame, &options)?;
    for note in &restored.notes {
        eprintln!("stillframe: note: {note}");
    }
    println!("{}", restored.pid);
    Ok(0)
}
