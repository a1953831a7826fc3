//! The command line: one file a subcommand.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::error::{Error, Kind, Result};
use crate::store::{default_dir, DirStore};

mod check;
mod checkpoint;
mod inspect;
mod list;
mod protect;
mod restore;
mod rm;
mod run;
mod show;
mod verify;

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
    Run(run::Args),
    Protect(protect::Args),
    List(list::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Rm(rm::Args),
    Check(check::Args),
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

/// One line of JSON.
fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::new(Kind::Io, format!("cannot write JSON: {e}")))
}

/// Runs the command; returns the exit status.
pub fn run(cli: &Cli) -> Result<i32> {
    match &cli.command {
        Command::Checkpoint(args) => checkpoint::run(args),
        Command::Restore(args) => restore::run(args),
        Command::Run(args) => run::run(args),
        Command::Protect(args) => protect::run(args),
        Command::List(args) => list::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Rm(args) => rm::run(args),
        Command::Check(args) => check::run(args),
    }
}
