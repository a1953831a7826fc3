//! The command line: one file a subcommand.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::checkpoint::Options;
use crate::error::{Error, Kind, Result};
use crate::image::Compression;
use crate::store::{default_dir, DirStore};

mod check;
mod checkpoint;
#[cfg(feature = "cluster")]
mod cluster;
mod compact;
mod inspect;
mod list;
mod progress;
mod protect;
mod regions;
mod restore;
mod rm;
mod run;
mod show;
mod usage;
mod verify;

pub use usage::parse;

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
    Compact(compact::Args),
    Check(check::Args),
    #[cfg(feature = "cluster")]
    Agent(cluster::AgentArgs),
    #[cfg(feature = "cluster")]
    Status(cluster::StatusArgs),
    /// Move a service to another node with a last frame: nothing is lost
    ///
    /// Exit status of all commands for a cluster: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused by policy, 4 the
    /// store cannot be reached or has no majority.
    #[cfg(feature = "cluster")]
    Switchover(cluster::MoveArgs),
    /// End a service where it is and resume its newest committed frame on another node
    #[cfg(feature = "cluster")]
    Failover(cluster::MoveArgs),
    /// Move a service back to the first node of its list
    #[cfg(feature = "cluster")]
    Failback(cluster::FailbackArgs),
    /// Hands off: nothing is started or moved by itself until `resume`
    #[cfg(feature = "cluster")]
    Pause(cluster::ClusterArgs),
    /// End a pause
    #[cfg(feature = "cluster")]
    Resume(cluster::ClusterArgs),
    /// Move all services off a node, and leave it empty
    #[cfg(feature = "cluster")]
    Drain(cluster::NodeArgs),
    /// Use a drained or fenced node again
    #[cfg(feature = "cluster")]
    Undrain(cluster::NodeArgs),
    /// Shut a node off by its fence command, and let others take over at once
    #[cfg(feature = "cluster")]
    Fence(cluster::FenceArgs),
    /// Show what happened in the cluster
    #[cfg(feature = "cluster")]
    History(cluster::HistoryArgs),
    /// Put the services of a configuration into the cluster; errors name line and field
    #[cfg(feature = "cluster")]
    Apply(cluster::ApplyArgs),
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

/// How pages get into a frame.
#[derive(Debug, clap::Args)]
pub struct TransferArgs {
    /// Compression of pages: none, zstd, zstd:LEVEL (1 to 19, or -1 to -100 for faster ones) or auto, which keeps pace with the store
    #[arg(long, value_name = "HOW", default_value = "auto")]
    compress: Compression,
    /// Bytes a second that are written to the store at most, in units of 1024 with k, M or G
    #[arg(long, value_name = "BYTES", value_parser = show::parse_size)]
    rate_limit: Option<u64>,
    /// Bytes of pages that are copied into memory at most, in units of 1024 with k, M or G; more than that is left to a forked twin
    #[arg(long, value_name = "BYTES", value_parser = show::parse_size, default_value = "256M")]
    memory_limit: u64,
}

impl TransferArgs {
    /// Options that say this, and nothing else.
    fn options(&self) -> Options {
        Options { compression: self.compress, rate_limit: self.rate_limit, memory_limit: self.memory_limit, ..Options::default() }
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
        Command::Compact(args) => compact::run(args),
        Command::Check(args) => check::run(args),
        #[cfg(feature = "cluster")]
        command => of_cluster(command),
    }
}

#[cfg(feature = "cluster")]
fn of_cluster(command: &Command) -> Result<i32> {
    match command {
        Command::Agent(args) => cluster::agent(args),
        Command::Status(args) => cluster::status(args),
        Command::Switchover(args) => cluster::move_service("switchover", args),
        Command::Failover(args) => cluster::move_service("failover", args),
        Command::Failback(args) => cluster::failback(args),
        Command::Pause(args) => cluster::pause(args, true),
        Command::Resume(args) => cluster::pause(args, false),
        Command::Drain(args) => cluster::drain(args, true),
        Command::Undrain(args) => cluster::drain(args, false),
        Command::Fence(args) => cluster::fence(args),
        Command::History(args) => cluster::history(args),
        Command::Apply(args) => cluster::apply(args),
        _ => Err(Error::new(Kind::Usage, "this is no command of a cluster")),
    }
}
