//! The command line: one file a subcommand.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::error::Result;
use crate::store::{default_dir, DirStore};

mod checkpoint;
mod restore;

/// Freeze a frame while the film goes on: copy-on-write checkpoints of running processes.
#[derive(Debug, Parser)]
#[command(name = "stillframe", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Checkpoint(checkpoint::Args),
    Restore(restore::Args),
}

/// Where frames are.
#[derive(Debug, clap::Args)]
pub struct StoreArgs {
    /// Directory that holds the frames [default: $STILLFRAME_STORE, else /var/lib/stillframe for root, else the XDG state directory]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

impl StoreArgs {
    fn open(&self) -> Result<DirStore> {
        Ok(DirStore::new(self.store.clone().map_or_else(default_dir, Ok)?))
    }
}

/// Runs the command; returns the exit status.
pub fn run(cli: &Cli) -> Result<i32> {
    match &cli.command {
        Command::Checkpoint(args) => checkpoint::run(args),
        Command::Restore(args) => restore::run(args),
    }
}
