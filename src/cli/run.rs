//! `stillframe run`.

use std::ffi::OsString;
use std::time::Duration;

use clap::ValueEnum;

use super::show::parse_duration;
use super::{StoreArgs, TransferArgs};
use crate::checkpoint::Options;
use crate::error::Result;
use crate::keep::{keep, OnCrash, Plan};

/// Run a program under frames: resume it where a frame is, else start it; take frames as it goes
///
/// If the store holds an intact frame of NAME, the program resumes there and COMMAND is not started anew. It gets our standard
/// input, output and error, no other open file, and a process group of its own. SIGTERM, SIGINT and
/// SIGHUP take one last frame that ends the program at the same instant, and exit with status 0; the same command resumes it.
/// A second one of them ends both at once. A program that exits with status 0 is finished: its frames are removed. Any
/// other end is a crash. Else the exit status is the program's, or 128 + N if signal N killed it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the frames
    #[arg(long)]
    name: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Time from the start of one frame to the start of the next (500ms, 10s, 5m, 2h) [default: only a last frame]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    every: Option<Duration>,
    /// Let one frame in N hold everything; the others hold what was written since the one before
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    full_every: u32,
    /// Keep only the newest N frames, and those that they build upon
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// What to do when the program is killed by a signal or exits with another status than 0
    #[arg(long, value_enum, default_value = "resume")]
    on_crash: OnCrashArg,
    /// How often in a row it is brought back without a new frame in between, ever more slowly
    #[arg(long, value_name = "N", default_value_t = 5)]
    attempts: u32,
    #[command(flatten)]
    transfer: TransferArgs,
    /// Leave the frames of a finished program, which the next run would resume
    #[arg(long)]
    keep_frames: bool,
    /// Say nothing but what goes wrong
    #[arg(long, short)]
    quiet: bool,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnCrashArg {
    /// Resume from the newest intact frame, or start anew where there is none
    Resume,
    /// Exit with the program's status
    Stop,
}

/// Runs the program; returns the exit status.
pub fn run(args: &Args) -> Result<i32> {
    let plan = Plan {
        command: args.command.clone(),
        capture: Options { name: Some(args.name.clone()), ..args.transfer.options() },
        every: args.every,
        full_every: args.full_every,
        keep: args.keep.map(|keep| keep as usize),
        on_crash: match args.on_crash {
            OnCrashArg::Resume => OnCrash::Resume,
            OnCrashArg::Stop => OnCrash::Stop,
        },
        attempts: args.attempts,
        keep_frames: args.keep_frames,
        quiet: args.quiet,
    };
    keep(&args.store.open()?, &plan)
}
