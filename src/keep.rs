//! Keeping a program alive by frames: start or resume it, take a frame now and then, and go back to the last one after a crash.
//!
//! One thread does it all. Signals are blocked and read from a descriptor between two deeds, so that none interrupts a
//! checkpoint half-way; only once the last frame is being taken does another signal end everything at once.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;

use crate::checkpoint::{Options as Capture, Then};
use crate::epochs::{Epochs, Schedule};
use crate::error::{Context, Error, Kind, Result};
use crate::proc::{self, stat, Pid};
use crate::restore::{restore, Loaded, Options as Restore};
use crate::resource::fd::restore::RestoreOptions;
use crate::signals::{News, Signals};
use crate::store::{DirStore, FrameRef, Store};
use crate::sys::{children, pidfd};

mod outcome;

pub use outcome::Outcome;

/// What to do when the program crashes: is killed by a signal, or exits with another status than 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCrash {
    /// Resume from the newest intact frame, or start anew when there is none.
    Resume,
    /// End with its status.
    Stop,
}

/// How to keep a program alive.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program and its arguments, for a start without a frame.
    pub command: Vec<OsString>,
    /// How frames are taken, and under which name.
    pub capture: Capture,
    /// The time from the start of one frame to the start of the next; none: only the last one is taken.
    pub every: Option<Duration>,
    /// One frame in so many holds everything, the others what was written since the one before.
    pub full_every: u32,
    /// How many frames stay in the store; none: all.
    pub keep: Option<usize>,
    /// What to do after a crash.
    pub on_crash: OnCrash,
    /// How often in a row it is brought back without a new frame in between.
    pub attempts: u32,
    /// Leave the frames of a program that finished with status 0.
    pub keep_frames: bool,
    /// Say nothing but what went wrong.
    pub quiet: bool,
}

/// Runs the program until it finishes, fails for good, or a signal asks us to stop; returns our exit status.
pub fn keep(store: &DirStore, plan: &Plan) -> Result<i32> {
    let name = plan.capture.name.as_deref().ok_or_else(|| Error::new(Kind::Usage, "frames need a name"))?;
    // A name that cannot be, or a store that cannot be written, is better known before the program has run for an hour.
    drop(store.begin(name)?);
    nix::sys::prctl::set_child_subreaper(true).context("cannot become a subreaper")?;
    let mut keeper = Keeper { store, plan, name, signals: Signals::block()?, failures: 0, noted: Vec::new() };
    let mut program = keeper.bring_up()?;
    loop {
        let end = keeper.watch(program)?;
        program = match keeper.after(end)? {
            Next::Exit(status) => return Ok(status),
            Next::Again(program) => program,
        };
    }
}

/// The program, alive when last looked at.
struct Program {
    pid: Pid,
    /// Tells how it ended even where its exit was seen by a checkpoint.
    handle: OwnedFd,
}

impl Program {
    fn of(pid: Pid) -> Result<Program> {
        Ok(Program { pid, handle: pidfd::open(pid).context(format!("cannot watch process {pid}"))? })
    }
}

/// How the watch over a program ended.
enum End {
    /// It ended by itself; true if a signal asked us to stop at that time.
    Ended(Outcome, bool),
    /// A signal came; the last frame is taken, or could not be.
    Stopped(i32),
}

enum Next {
    Exit(i32),
    Again(Program),
}

struct Keeper<'a> {
    store: &'a DirStore,
    plan: &'a Plan,
    name: &'a str,
    signals: Signals,
    /// Crashes in a row without a new frame in between.
    failures: u32,
    /// Notes of frames, each said once.
    noted: Vec<String>,
}

impl Keeper<'_> {
    fn say(&self, words: &str) {
        if !self.plan.quiet {
            eprintln!("stillframe: {words}");
        }
    }

    /// Resumes from the newest intact frame, or starts the command.
    fn bring_up(&self) -> Result<Program> {
        match self.newest_intact()? {
            Some(frame) => self.resume(&frame),
            None => self.start(),
        }
    }

    fn newest_intact(&self) -> Result<Option<FrameRef>> {
        let found = match self.store.newest_intact(self.name) {
            Err(e) if e.kind() == Kind::NotFound => return Ok(None),
            Err(e) if e.kind() == Kind::Corrupt => {
                eprintln!("stillframe: {e}");
                return Ok(None);
            }
            found => found?,
        };
        for skipped in &found.skipped {
            eprintln!("stillframe: skipped {}: {}", skipped.frame, skipped.error);
        }
        Ok(Some(found.frame))
    }

    fn resume(&self, frame: &FrameRef) -> Result<Program> {
        let loaded = Loaded::open(&self.store.path(frame))?;
        let options = Restore { descriptors: RestoreOptions { to_stdio: true }, ..Restore::default() };
        let restored = restore(&loaded, &options);
        leave_time_namespace()?;
        let restored = restored.map_err(|e| {
            // Half-made processes would hold the ids that the next attempt needs.
            end_descendants();
            e.context(format_args!("cannot resume from {frame}"))
        })?;
        for note in &restored.notes {
            self.say(&format!("note: {note}"));
        }
        self.say(&format!("resumed from {frame} as process {}", restored.pid));
        Program::of(restored.pid)
    }

    /// In a group of its own: a Ctrl-C at the terminal is for us alone, and we take a last frame of what it would have killed.
    /// Without descriptors that happen to be open here: a pipe of somebody else would make every frame fail.
    fn start(&self) -> Result<Program> {
        let (program, arguments) = self.plan.command.split_first().ok_or_else(|| Error::new(Kind::Usage, "there is no command to run"))?;
        let mut command = Command::new(program);
        command.args(arguments).process_group(0);
        let child = children::start_clean(&mut command, self.signals.before).spawn();
        let child = child.map_err(|e| Error::io(format!("cannot start {}", program.to_string_lossy()), e))?;
        self.say(&format!("started {} as process {}", program.to_string_lossy(), child.id()));
        Program::of(child.id() as Pid)
    }

    /// Takes frames until the program ends or a signal comes.
    fn watch(&mut self, program: Program) -> Result<End> {
        let Plan { every, full_every, keep, .. } = *self.plan;
        let schedule = Schedule { every: every.unwrap_or(Duration::MAX), full_every, keep };
        let mut epochs = Epochs::begin(program.pid, self.plan.capture.clone(), schedule)?;
        every.into_iter().for_each(|every| epochs.postpone(every));
        loop {
            let news = self.signals.wait(every.map(|_| epochs.due()))?;
            if let Some(outcome) = reap(&program)? {
                return Ok(End::Ended(outcome, matches!(news, News::Stop(_))));
            }
            match news {
                News::Stop(signal) => return self.last_frame(&program, &mut epochs, signal).map(End::Stopped),
                News::Child => {}
                News::Due => self.frame(&program, &mut epochs),
            }
        }
    }

    /// Takes a frame; a failure is worth a line, and the program goes on.
    fn frame(&mut self, program: &Program, epochs: &mut Epochs) {
        match epochs.take(self.store) {
            Ok(epoch) => {
                self.failures = 0;
                self.note(epoch.report.notes);
                self.say(&format!("{}: paused {:.1} ms", epoch.report.frame, epoch.report.pause_ns as f64 / 1e6));
                if let Some(every) = epoch.new_interval {
                    self.say(&format!("the store takes {:.1} s a frame: now one every {:.1} s", epoch.report.durable_ns as f64 / 1e9, every.as_secs_f64()));
                }
                if let Err(e) = epoch.removed {
                    eprintln!("stillframe: cannot remove old frames: {e}");
                }
            }
            // The program may have ended under our hands, which the next look will tell.
            Err(_) if !alive(program.pid) => {}
            Err(e) => eprintln!("stillframe: no frame this time: {e}"),
        }
    }

    fn note(&mut self, notes: Vec<String>) {
        for note in notes {
            if !self.noted.contains(&note) {
                self.say(&format!("note: {note}"));
                self.noted.push(note);
            }
        }
    }

    fn retain(&self) {
        if let Some(Err(e)) = self.plan.keep.map(|keep| self.store.retain(self.name, keep)) {
            eprintln!("stillframe: cannot remove old frames: {e}");
        }
    }

    /// One last frame that ends the program at the same instant.
    fn last_frame(&self, program: &Program, epochs: &mut Epochs, signal: i32) -> Result<i32> {
        self.signals.end_at_once(program.pid)?;
        match epochs.last(self.store, Then::Kill) {
            Ok(report) => {
                self.retain();
                end_descendants();
                self.say(&format!("stopped at {}; the same command resumes there", report.frame));
                Ok(0)
            }
            Err(e) => {
                eprintln!("stillframe: no last frame: {e}");
                self.end(program, signal)?;
                Ok(1)
            }
        }
    }

    /// Without a last frame the program gets the signal that was meant for it, and some time.
    fn end(&self, program: &Program, signal: i32) -> Result<()> {
        const GRACE: Duration = Duration::from_secs(10);
        const STEP: Duration = Duration::from_millis(20);
        let give_up = Instant::now() + GRACE;
        // It may have ended already.
        let _ = pidfd::send_signal(program.handle.as_fd(), signal);
        while reap(program)?.is_none() && Instant::now() < give_up {
            std::thread::sleep(STEP);
        }
        end_descendants();
        Ok(())
    }

    fn after(&mut self, end: End) -> Result<Next> {
        match end {
            End::Stopped(status) => Ok(Next::Exit(status)),
            End::Ended(outcome, _) if outcome.is_success() => {
                self.forget()?;
                Ok(Next::Exit(0))
            }
            // A service manager may send its signal to the program too, which then ends without a last frame.
            End::Ended(outcome, stop) if stop || self.plan.on_crash == OnCrash::Stop => {
                eprintln!("stillframe: the program {outcome}");
                Ok(Next::Exit(outcome.status()))
            }
            End::Ended(outcome, _) => self.bring_back(outcome),
        }
    }

    /// A finished program must not be resumed by the next run.
    fn forget(&self) -> Result<()> {
        if self.plan.keep_frames {
            return Ok(());
        }
        let frames = self.store.list(Some(self.name))?;
        self.store.remove_all(&frames)
    }

    /// Tries, ever more slowly, until the program runs again or the attempts are used up.
    fn bring_back(&mut self, outcome: Outcome) -> Result<Next> {
        // Orphans of the dead program hold ids and files that its second instance needs.
        end_descendants();
        let mut why = format!("the program {outcome}");
        loop {
            if self.failures == self.plan.attempts {
                eprintln!("stillframe: {why}; given up after {} attempts", self.failures);
                return Ok(Next::Exit(outcome.status()));
            }
            self.failures += 1;
            let delay = delay(self.failures);
            eprintln!("stillframe: {why}; attempt {} of {} in {:.1} s", self.failures, self.plan.attempts, delay.as_secs_f64());
            if self.signals.pause(delay)? {
                self.say("stopped while the program was down; the same command resumes it");
                return Ok(Next::Exit(0));
            }
            match self.bring_up() {
                Ok(program) => return Ok(Next::Again(program)),
                Err(e) => why = e.to_string(),
            }
        }
    }
}

/// A quarter of a second, doubled each time, a minute at most.
fn delay(attempt: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(250);
    const MOST: Duration = Duration::from_secs(60);
    FIRST.saturating_mul(1 << (attempt.saturating_sub(1)).min(16)).min(MOST)
}

fn alive(pid: Pid) -> bool {
    stat::read(pid).is_ok_and(|stat| !stat.is_zombie())
}

/// Buries every dead child, orphans too; how the program ended, if it has.
fn reap(program: &Program) -> Result<Option<Outcome>> {
    let mut ended = None;
    loop {
        match children::reap(false) {
            Ok(Some((pid, status))) if pid == program.pid => ended = Some(Outcome::of(status)),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => break,
            Err(e) => return Err(e).context("cannot wait for the program"),
        }
    }
    let gone = || pidfd::send_signal(program.handle.as_fd(), 0).is_err_and(|e| e.raw_os_error() == Some(libc::ESRCH));
    if ended.is_none() && gone() {
        // A checkpoint traces the program, and may have been the one to see it exit.
        ended = Some(children::exit_status(program.handle.as_fd()).map_or(Outcome::Unseen, Outcome::of));
    }
    Ok(ended)
}

/// A restore may have chosen a time namespace for the children that it was about to fork; the next one starts from our own clocks.
fn leave_time_namespace() -> Result<()> {
    const CLONE_NEWTIME: i32 = 0x80;
    let link = |name: &str| proc::link(Path::new(name)).ok();
    if link("/proc/self/ns/time") == link("/proc/self/ns/time_for_children") {
        return Ok(());
    }
    let own = Path::new("/proc/self/ns/time");
    nix::sched::setns(File::open(own).at("open", own)?, CloneFlags::from_bits_retain(CLONE_NEWTIME)).context("cannot leave the time namespace of a second instance")
}

/// Kills what is left below us, however deep: whoever loses a parent becomes our child.
fn end_descendants() {
    let own = std::process::id() as Pid;
    while let Ok(left) = proc::children(own) {
        for pid in &left {
            // It may have ended in between.
            let _ = pidfd::open(*pid).and_then(|handle| pidfd::send_signal(handle.as_fd(), libc::SIGKILL));
        }
        if left.is_empty() || children::reap(true).is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_end() {
        assert_eq!([1, 2, 3, 9, 40].map(|attempt| delay(attempt).as_millis()), [250, 500, 1000, 60_000, 60_000]);
    }
}
