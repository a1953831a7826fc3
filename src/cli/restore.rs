//! `stillframe restore`.

use std::io::IsTerminal;

use clap::ValueEnum;

use super::{progress, StoreArgs};
use crate::error::Result;
use crate::hooks::{Hook, Hooks};
use crate::isolate::Network;
use crate::resource::fd::restore::RestoreOptions;
use crate::resource::files::open::Policy;
use crate::restore::launch::{launch, Place};
use crate::restore::lazy::Pager;
use crate::restore::{restore, Loaded, Options};
use crate::supervise;

/// Bring a frame back as a running second instance, with its original process ids
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NAME (the newest frame of that name), NAME@SEQ, or the path of a .frame file
    frame: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Return when the instance runs, and print its process id [default when standard output is no terminal]
    #[arg(long, conflicts_with = "foreground")]
    detach: bool,
    /// Stay, forward signals, and exit with the program's status [default on a terminal]
    #[arg(long)]
    foreground: bool,
    /// Run it in fresh pid, mount (own /proc), uts and ipc namespaces
    #[arg(long)]
    isolate: bool,
    /// The network of an isolated instance: new, host, or the path of a network namespace
    #[arg(long, value_name = "new|host|PATH", default_value = "new", requires = "isolate")]
    netns: Network,
    /// Let it run at once and bring its memory while it runs: what it touches first, what was written last next, then the rest
    #[arg(long)]
    lazy: bool,
    /// Connect descriptors 0, 1 and 2 that led out of the tree to ours
    #[arg(long)]
    to_stdio: bool,
    /// Accept mapped files that differ from the frame's, and a processor that lacks features
    #[arg(long)]
    allow_changed: bool,
    /// Refuse any difference of any file
    #[arg(long, conflicts_with = "allow_changed")]
    strict_files: bool,
    /// Which content files open for writing get: what is here now, or what was saved with the frame
    #[arg(long, value_enum, default_value = "here")]
    files: Files,
    /// Say on standard error how much of the memory is in place, in a line of JSON some twenty times a second
    #[arg(long)]
    progress_json: bool,
    /// Run COMMAND by sh at an event: restored
    #[arg(long, value_name = "EVENT=COMMAND")]
    hook: Vec<Hook>,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Files {
    Here,
    Saved,
}

impl Args {
    fn options(&self, pager: Option<Pager>) -> Options {
        Options {
            files: Policy { allow_changed: self.allow_changed, strict: self.strict_files, saved: self.files == Files::Saved },
            descriptors: RestoreOptions { to_stdio: self.to_stdio },
            hooks: Hooks(self.hook.clone()),
            pager,
            progress: self.progress_json.then(progress::lines),
        }
    }

    fn detaches(&self) -> bool {
        self.detach || !(self.foreground || std::io::stdout().is_terminal())
    }
}

/// Restores; in the foreground returns the program's exit status.
pub fn run(args: &Args) -> Result<i32> {
    let located = args.store.open()?.resolve(&args.frame)?;
    let frame = Loaded::open(&located.path)?;
    let pager = args.lazy.then(|| Pager::start(&frame, args.detaches())).transpose()?;
    let options = args.options(pager);
    let held = supervise::hold_signals()?;
    if !args.isolate && !args.detaches() {
        let restored = restore(&frame, &options)?;
        tell(&restored.notes);
        return supervise::until_exit(restored.pid, &held);
    }
    let place = Place { isolate: args.isolate.then(|| args.netns.clone()), detach: args.detaches() };
    let launched = launch(&frame, &options, &place)?;
    tell(&launched.notes);
    if place.detach {
        println!("{}", launched.pid);
        return Ok(0);
    }
    supervise::until_exit(launched.helper, &held)
}

fn tell(notes: &[String]) {
    for note in notes {
        eprintln!("stillframe: note: {note}");
    }
}
