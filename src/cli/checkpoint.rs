//! `stillframe checkpoint`.

use clap::ValueEnum;

use super::progress::{self, Bar};
use super::{json, show, StoreArgs, TransferArgs};
use crate::checkpoint::{checkpoint, Method, Options, Report, SaveFiles, Then};
use crate::error::{Error, Kind, Result};
use crate::hooks::{Hook, Hooks};
use crate::proc::Pid;
use crate::request;
use crate::resource::fd::CaptureOptions;
use crate::transfer::Progress;

/// Take a consistent frame of a running process and all its descendants, or ask a program that is linked to the library for a
/// snapshot of its regions
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The process; its descendants are part of the frame. Without it, the linked program that has the session NAME is asked
    #[arg(value_parser = show::parse_pid, required_unless_present = "name")]
    pid: Option<Pid>,
    /// Name of the frame [default: the name of the command], or of a linked program's session
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
    /// How memory is frozen
    #[arg(long, value_enum, default_value = "auto")]
    method: MethodArg,
    /// What becomes of the process: it runs on, stays stopped, or ends at the very instant of the frame
    #[arg(long, value_enum, default_value = "run")]
    then: ThenArg,
    #[command(flatten)]
    transfer: TransferArgs,
    /// What becomes of established TCP connections: the restored program sees a reset
    #[arg(long, value_enum, default_value = "close")]
    tcp: TcpArg,
    /// What becomes of pipes and sockets that lead out of the tree: refuse them, or let the restored program see a hang-up
    #[arg(long, value_enum, default_value = "refuse")]
    external: ExternalArg,
    /// Store the program and all files it maps, so that the frame restores where they are not installed
    #[arg(long)]
    self_contained: bool,
    /// Keep the content of regular files open for writing as of the instant, all or those that match the pattern
    #[arg(long, value_name = "GLOB", num_args = 0..=1, require_equals = true, default_missing_value = "*")]
    save_files: Option<String>,
    /// Run COMMAND by sh at an event: frozen, resumed or committed
    #[arg(long, value_name = "EVENT=COMMAND")]
    hook: Vec<Hook>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    /// Say on standard error how far it is, in a line of JSON some twenty times a second
    #[arg(long)]
    progress_json: bool,
    /// Say nothing but what goes wrong
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MethodArg {
    /// Track, where the kernel can; a fork at the end where pages are written faster than they are stored
    Auto,
    /// Copy pages while the process runs, and in the pause those that it wrote meanwhile
    Track,
    /// Split the memory off by a fork at the instant
    Fork,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ThenArg {
    Run,
    Stop,
    Kill,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum TcpArg {
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum ExternalArg {
    Refuse,
    Close,
}

impl Args {
    fn options(&self, progress: Option<Progress>) -> Options {
        Options {
            name: self.name.clone(),
            method: match self.method {
                MethodArg::Auto => Method::Auto,
                MethodArg::Track => Method::Track,
                MethodArg::Fork => Method::Fork,
            },
            then: match self.then {
                ThenArg::Run => Then::Run,
                ThenArg::Stop => Then::Stop,
                ThenArg::Kill => Then::Kill,
            },
            progress,
            self_contained: self.self_contained,
            save_files: match self.save_files.as_deref() {
                None => SaveFiles::None,
                Some("*") => SaveFiles::All,
                Some(pattern) => SaveFiles::Matching(pattern.to_owned()),
            },
            descriptors: CaptureOptions {
                tree: Vec::new(),
                external_close: self.external == ExternalArg::Close,
                tcp_close: self.tcp == TcpArg::Close,
            },
            hooks: Hooks(self.hook.clone()),
            ..self.transfer.options()
        }
    }
}

/// Takes the frame and says how it went.
pub fn run(args: &Args) -> Result<i32> {
    let Some(pid) = args.pid else { return ask(args) };
    let bar = Bar::new(!args.json && !args.quiet && !args.progress_json);
    let progress = if args.progress_json { Some(progress::lines()) } else { bar.as_ref().map(Bar::progress) };
    let report = checkpoint(pid, &args.store.open()?, &args.options(progress))?;
    drop(bar);
    for note in report.notes.iter().filter(|_| !args.quiet) {
        eprintln!("stillframe: note: {note}");
    }
    if args.json {
        println!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else if !args.quiet {
        println!("{}", sentence(&report));
    }
    Ok(0)
}

/// Asks a linked program, which answers from its next safe point.
fn ask(args: &Args) -> Result<i32> {
    let exit = match args.then {
        ThenArg::Run => false,
        ThenArg::Kill => true,
        ThenArg::Stop => return Err(Error::new(Kind::Usage, "a linked program cannot be asked to stay stopped; use --then run or kill")),
    };
    let stored = request::ask(&args.store.open()?, args.name.as_deref().unwrap_or_default(), exit, |who| {
        eprintln!("stillframe: asked {who}; waiting for its next safe point");
    })?;
    if args.json {
        println!("{}", json(&stored)?);
    } else {
        let (pause, durable, mib) = (stored.pause_ns as f64 / 1e6, stored.durable_ns as f64 / 1e6, f64::from(1 << 20));
        println!("{}: regions of {:.1} MiB by {}, held up for {pause:.1} ms, durable after {durable:.1} ms, {:.1} MiB stored", stored.frame, stored.region_bytes as f64 / mib, stored.method, stored.bytes as f64 / mib);
    }
    Ok(0)
}

fn sentence(report: &Report) -> String {
    format!(
        "{}: {} process{}, paused {:.1} ms, durable after {:.1} ms, {} pages ({} more are zero), {:.1} MiB stored",
        report.frame,
        report.processes,
        if report.processes == 1 { "" } else { "es" },
        report.pause_ns as f64 / 1e6,
        report.durable_ns as f64 / 1e6,
        report.pages,
        report.zero_pages,
        report.bytes as f64 / f64::from(1 << 20),
    )
}
