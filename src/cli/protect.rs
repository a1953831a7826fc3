//! `stillframe protect`.

use std::path::PathBuf;
use std::time::Duration;

use super::show::{parse_duration, parse_pid};
use super::{StoreArgs, TransferArgs};
use crate::checkpoint::Options;
use crate::epochs::Schedule;
use crate::error::Result;
use crate::proc::Pid;
use crate::protect::{protect, End, Plan};

/// Take frames of a running process continuously; each but the first holds what was written since the one before
///
/// The process stays watched between frames, so that an epoch costs one look at its page tables and a copy of the pages that it
/// wrote. Children that it forks and programs that it executes are followed. Protection ends when the process ends, or at
/// SIGTERM, SIGINT or SIGHUP, which leave the process running.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The process; its descendants are part of every frame
    #[arg(value_parser = parse_pid)]
    pid: Pid,
    /// Name of the frames [default: the name of the command]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
    /// Time from the start of one frame to the start of the next (200ms, 1s, 5m, 2h); more where the store cannot keep up
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1s")]
    every: Duration,
    /// Let one frame in N hold everything
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    full_every: u32,
    /// Keep only the newest N frames, and those that they build upon
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// End after N frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,
    /// Renew FILE at every epoch with figures in the text format of Prometheus
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    #[command(flatten)]
    transfer: TransferArgs,
    /// Say nothing but what goes wrong
    #[arg(long, short)]
    quiet: bool,
}

/// Protects the process; returns the exit status.
pub fn run(args: &Args) -> Result<i32> {
    let plan = Plan {
        pid: args.pid,
        capture: Options { name: args.name.clone(), ..args.transfer.options() },
        schedule: Schedule { every: args.every, full_every: args.full_every, keep: args.keep.map(|keep| keep as usize) },
        metrics: args.metrics.clone(),
        epochs: args.epochs,
        quiet: args.quiet,
    };
    let end = protect(&args.store.open()?, &plan)?;
    if !args.quiet {
        match end {
            End::Gone => eprintln!("stillframe: process {} has ended", args.pid),
            End::Asked => eprintln!("stillframe: process {} is no longer protected", args.pid),
            End::Done => {}
        }
    }
    Ok(0)
}
