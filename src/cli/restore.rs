//! `stillframe restore`.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use clap::ValueEnum;

use super::StoreArgs;
use crate::error::{Context, Error, Kind, Result};
use crate::hooks::{Hook, Hooks};
use crate::isolate::{self, Network};
use crate::proc::{self, status::Status, Pid};
use crate::resource::fd::restore::RestoreOptions;
use crate::resource::files::open::Policy;
use crate::restore::{restore, Loaded, Options, Restored};
use crate::supervise;
use crate::sys::clone;

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
    fn options(&self) -> Options {
        Options {
            files: Policy { allow_changed: self.allow_changed, strict: self.strict_files, saved: self.files == Files::Saved },
            descriptors: RestoreOptions { to_stdio: self.to_stdio },
            hooks: Hooks(self.hook.clone()),
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
    if !args.isolate && !args.detaches() {
        let held = supervise::hold_signals()?;
        let restored = restore(&frame, &args.options())?;
        tell(&restored.notes);
        return supervise::until_exit(restored.pid, &held);
    }
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    let flags = if args.isolate { args.netns.clone_flags() } else { 0 };
    if args.isolate {
        args.netns.enter()?;
    }
    let held = supervise::hold_signals()?;
    let child = clone::child(flags, || in_child(args, &frame, writer)).map_err(|e| {
        Error::io("cannot make the namespaces of an isolated instance (needs CAP_SYS_ADMIN)", e)
    })?;
    let root = report_of(child, reader)?;
    let pid = if args.isolate { outer_pid(child, root).unwrap_or(child) } else { root };
    if args.detaches() {
        println!("{pid}");
        return Ok(0);
    }
    supervise::until_exit(child, &held)
}

fn tell(notes: &[String]) {
    for note in notes {
        eprintln!("stillframe: note: {note}");
    }
}

/// The child that restores. Isolated, it stays as the init of the new pid namespace.
fn in_child(args: &Args, frame: &Loaded, writer: OwnedFd) -> i32 {
    let outcome = (|| {
        if args.detaches() {
            nix::unistd::setsid().context("cannot lead a session")?;
        }
        if args.isolate {
            isolate::furnish(&args.netns, &frame.manifest.host)?;
        }
        let held = supervise::hold_signals()?;
        Ok::<_, Error>((restore(frame, &args.options())?, held))
    })();
    let mut report = File::from(writer);
    match outcome {
        Ok((Restored { pid, notes, .. }, held)) => {
            tell(&notes);
            let told = report.write_all(format!("ok {pid}").as_bytes());
            drop(report);
            if told.is_err() || !args.isolate {
                return 0;
            }
            forget_outputs(args);
            supervise::until_exit(pid, &held).unwrap_or(1)
        }
        Err(error) => {
            // Should the parent be gone, nobody is left to be told.
            let _ = report.write_all(error.to_string().as_bytes());
            1
        }
    }
}

/// A detached init must not keep a script's pipes open.
fn forget_outputs(args: &Args) {
    if !args.detaches() || args.to_stdio {
        return;
    }
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// Waits for the child's word: the root's process id as it sees it.
fn report_of(child: Pid, reader: OwnedFd) -> Result<Pid> {
    let mut text = String::new();
    File::from(reader).read_to_string(&mut text).context("cannot hear from the restoring process")?;
    if let Some(pid) = text.strip_prefix("ok ").and_then(|pid| pid.parse().ok()) {
        return Ok(pid);
    }
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None);
    let why = if text.is_empty() { "the restoring process died".to_owned() } else { text };
    Err(Error::new(Kind::Refused, why))
}

/// The number in our pid namespace of the process that the init `child` knows as `inner`.
fn outer_pid(child: Pid, inner: Pid) -> Option<Pid> {
    let all = proc::numbers(Path::new("/proc")).ok()?;
    let space = proc::link(&proc::path(child, "ns/pid")).ok()?;
    all.into_iter().find(|&pid| {
        proc::link(&proc::path(pid, "ns/pid")).ok().as_ref() == Some(&space) && Status::read(pid).and_then(|status| status.innermost("NSpid")).ok() == Some(inner)
    })
}
