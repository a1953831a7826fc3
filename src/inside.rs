//! The whole process, from inside: frames of the calling program, and of others, by the `stillframe` command.
//!
//! A process cannot stop and read itself, and a forked child of a threaded program must run nothing that takes a lock. So the
//! command does the work, in a process that is no child of ours.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::error::{Context, Error, Kind, Result};
use crate::proc::{self, stat, Pid};
use crate::region::Aside;
use crate::sys::ptracer;
use crate::transfer::Status;

/// How often we look whether it is done.
const TICK: Duration = Duration::from_millis(2);
/// How often the program is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// Functions of the program.
#[derive(Default)]
pub struct Callbacks<'a> {
    /// Before the freeze: close connections, flush. An error calls the frame off.
    pub before: Option<Box<dyn FnMut() -> std::result::Result<(), String> + 'a>>,
    /// In the original, when the frame is safe or has failed.
    pub after: Option<Box<dyn FnMut() + 'a>>,
    /// In the second instance: open connections, seed generators anew.
    pub restored: Option<Box<dyn FnMut() + 'a>>,
    /// Some twenty times a second, with how far it is; `false` gives it up. Not for [`checkpoint_self`], whose second instance
    /// would go on with the call.
    pub progress: Option<Watch<'a>>,
}

/// A function that is told how far it is, and says whether to go on.
pub type Watch<'a> = Box<dyn FnMut(&Progress) -> bool + 'a>;

/// How far a checkpoint or a restore is; counts are bytes of memory and files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Progress {
    /// What is done.
    pub done: u64,
    /// What there is to do, as far as is known: 0 at first, and it grows where a running process writes.
    pub total: u64,
    /// Length of the frame so far; 0 in a restore.
    pub written: u64,
    /// Since the beginning.
    pub elapsed: Duration,
}

/// Where frames are, and how they are taken.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The store; none: as for the command.
    pub store: Option<PathBuf>,
    /// The frame's name; none: the name of the command.
    pub name: Option<String>,
    /// More arguments of the command, such as `--compress none`.
    pub arguments: Vec<String>,
}

/// A frame that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Saved {
    /// NAME@SEQ.
    pub frame: String,
    /// Processes in it.
    pub processes: usize,
    /// How long the tree stood still, in nanoseconds.
    pub pause_ns: u64,
    /// Until the frame was safe on storage, in nanoseconds.
    pub durable_ns: u64,
    /// Length of its file.
    pub bytes: u64,
}

/// Who comes out of [`checkpoint_self`].
#[must_use = "the second instance goes on from here as well"]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The original, whose frame is safe.
    Saved(Saved),
    /// The second instance, brought back from the frame.
    Restored(Restored),
}

/// What a second instance can tell of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// Its process id, in its own pid namespace.
    pub pid: Pid,
    /// Whether the machine was started anew since the frame, or is another one.
    pub other_boot: bool,
}

/// Takes a frame of the calling process and all its descendants; returns twice, as `fork` does: in this process when the frame
/// is safe, and in each second instance when it is brought back. Other threads go on meanwhile, in both.
///
/// It needs the `stillframe` command (`STILLFRAME_COMMAND`, else in `PATH`) and what a checkpoint needs. Sessions of
/// [`crate::region`] may be open: their snapshots in flight are stored first, which takes its time, and each instance goes on
/// with its own (see [`Session`](crate::region::Session)).
///
/// # Errors
///
/// [`Kind::Cancelled`] if the callback objects; [`Kind::NotFound`] if there is no command; [`Kind::Refused`] with what the
/// command says, or where our orphans are our own children, as in an init.
///
/// ```no_run
/// use stillframe::inside::{checkpoint_self, Callbacks, Options, Outcome};
///
/// match checkpoint_self(&Options::default(), &mut Callbacks::default())? {
///     Outcome::Saved(saved) => println!("{} is safe", saved.frame),
///     Outcome::Restored(_) => println!("back again"),
///     _ => {}
/// }
/// # Ok::<(), stillframe::Error>(())
/// ```
pub fn checkpoint_self(options: &Options, callbacks: &mut Callbacks<'_>) -> Result<Outcome> {
    let us = Identity::now()?;
    if std::process::id() == 1 || nix::sys::prctl::get_child_subreaper().unwrap_or(false) {
        return Err(Error::refused("orphans of this process become its own children, and so would the checkpointer; checkpoint it from outside"));
    }
    if let Some(Err(why)) = callbacks.before.as_mut().map(|call| call()) {
        return Err(Error::new(Kind::Cancelled, format!("the program's callback objects: {why}")));
    }
    // Sessions go on in both instances, each for itself.
    let aside = Aside::stand();
    let done = Helper::start(options).and_then(|helper| helper.wait(&us));
    drop(aside);
    match &done {
        Ok(Outcome::Restored(_)) => callbacks.restored.iter_mut().for_each(|call| call()),
        _ => callbacks.after.iter_mut().for_each(|call| call()),
    }
    done
}

/// Takes a frame of process `pid` and all its descendants, as the command does.
///
/// # Errors
///
/// [`Kind::Refused`] with what the command says; [`Kind::Cancelled`] if the progress callback gives it up: then the process runs
/// on, and there is no frame.
///
/// ```no_run
/// use stillframe::inside::{checkpoint_pid, Callbacks, Options};
///
/// let mut callbacks = Callbacks { progress: Some(Box::new(|at| { println!("{} of {} bytes", at.done, at.total); true })), ..Callbacks::default() };
/// let saved = checkpoint_pid(4711, &Options { name: Some("job".to_owned()), ..Options::default() }, &mut callbacks)?;
/// println!("{} stood still for {} ns", saved.frame, saved.pause_ns);
/// # Ok::<(), stillframe::Error>(())
/// ```
pub fn checkpoint_pid(pid: Pid, options: &Options, callbacks: &mut Callbacks<'_>) -> Result<Saved> {
    let mut command = command()?;
    arguments(&mut command, pid, options);
    read_saved(&run(command, callbacks)?)
}

/// Brings frame `frame` (NAME, NAME@SEQ or a path) back as a process of its own session; returns its process id.
///
/// # Errors
///
/// As [`checkpoint_pid`]; given up, nothing is left of the second instance. One that runs already stays, and is returned.
///
/// ```no_run
/// use stillframe::inside::{restore, Callbacks, Options};
///
/// let begun = std::time::Instant::now();
/// let mut patient = Callbacks { progress: Some(Box::new(move |_| begun.elapsed().as_secs() < 60)), ..Callbacks::default() };
/// let pid = restore("job", &Options { arguments: vec!["--isolate".to_owned()], ..Options::default() }, &mut patient)?;
/// println!("process {pid} goes on from the newest frame");
/// # Ok::<(), stillframe::Error>(())
/// ```
pub fn restore(frame: &str, options: &Options, callbacks: &mut Callbacks<'_>) -> Result<Pid> {
    let mut command = command()?;
    command.args(["restore", frame, "--detach"]).args(&options.arguments);
    if let Some(store) = &options.store {
        command.arg("--store").arg(store);
    }
    let said = run(command, callbacks)?;
    said.trim().parse().map_err(|_| Error::refused(format!("the command answers {said:?}, which is no process id")))
}

/// The command, which is looked for where the program says.
fn command() -> Result<Command> {
    let named = std::env::var_os("STILLFRAME_COMMAND").filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| std::env::split_paths(&path).map(|dir| dir.join("stillframe")).find(|file| file.is_file()));
    found.map(Command::new).ok_or_else(|| Error::new(Kind::NotFound, "there is no command stillframe in PATH; install it or set STILLFRAME_COMMAND"))
}

fn arguments(command: &mut Command, pid: Pid, options: &Options) {
    command.args(["checkpoint", &pid.to_string(), "--json"]).args(&options.arguments);
    if let Some(store) = &options.store {
        command.arg("--store").arg(store);
    }
    if let Some(name) = &options.name {
        command.arg("--name").arg(name);
    }
}

fn read_saved(text: &str) -> Result<Saved> {
    serde_json::from_str(text).map_err(|e| Error::refused(format!("the command answers {text:?}, which makes no sense: {e}")))
}

/// Runs a command of ours to its end; its output.
fn run(mut command: Command, callbacks: &mut Callbacks<'_>) -> Result<String> {
    // Files, not pipes: a restored program must not be able to hold us up.
    let (out, err) = (scratch()?, scratch()?);
    let share = |file: &fs::File| file.try_clone().context("cannot share a file");
    command.stdin(Stdio::null()).stdout(share(&out)?).stderr(share(&err)?);
    if callbacks.progress.is_some() {
        command.arg("--progress-json");
    }
    let mut child = command.spawn().map_err(|e| Error::io(format!("cannot run {}", command.get_program().to_string_lossy()), e))?;
    let mut news = News { from: share(&err)?, at: 0, begun: Instant::now(), told: None, latest: Status::default() };
    let status = loop {
        match child.try_wait().context("cannot wait for the command")? {
            Some(status) => break status,
            None => std::thread::sleep(TICK),
        }
        if callbacks.progress.as_mut().is_some_and(|call| !news.tell(call)) {
            // A checkpoint or restore that is killed leaves nothing behind.
            let _ = child.kill();
            child.wait().context("cannot wait for the command")?;
            let said = text(out)?;
            // What it has reported is done.
            return if said.ends_with('\n') { Ok(said) } else { Err(Error::new(Kind::Cancelled, "it was given up")) };
        }
    };
    match status.success() {
        true => text(out),
        false => Err(Error::refused(last_line(&text(err)?, &status.to_string()))),
    }
}

/// What the command says of how far it is.
struct News {
    from: fs::File,
    at: u64,
    begun: Instant,
    told: Option<Instant>,
    latest: Status,
}

impl News {
    /// Tells, if it is time; whether to go on.
    fn tell(&mut self, call: &mut dyn FnMut(&Progress) -> bool) -> bool {
        if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return true;
        }
        self.told = Some(Instant::now());
        self.read();
        let Status { fed, expected, written, .. } = self.latest;
        call(&Progress { done: fed, total: expected, written, elapsed: self.begun.elapsed() })
    }

    /// Reads on, up to the last line that is whole. The command writes at the file's own position, which is not ours.
    fn read(&mut self) {
        let mut bytes = [0; 16 << 10];
        while let Ok(len) = self.from.read_at(&mut bytes, self.at) {
            let Some(end) = bytes[..len].iter().rposition(|&byte| byte == b'\n') else { return };
            let mut lines = bytes[..end].rsplit(|&byte| byte == b'\n');
            self.latest = lines.find_map(|line| serde_json::from_slice(line).ok()).unwrap_or(self.latest);
            self.at += end as u64 + 1;
        }
    }
}

fn scratch() -> Result<fs::File> {
    tempfile::tempfile().context("cannot make a temporary file")
}

fn text(mut file: fs::File) -> Result<String> {
    let mut text = String::new();
    std::io::Seek::rewind(&mut file).and_then(|()| file.read_to_string(&mut text)).context("cannot read what the command said")?;
    Ok(text)
}

fn last_line(text: &str, otherwise: &str) -> String {
    text.lines().rfind(|line| !line.starts_with('{')).map_or(otherwise, |line| line.trim_start_matches("stillframe: ")).to_owned()
}

/// What a process and its second instance do not have in common.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    boot: String,
    started: u64,
}

impl Identity {
    fn now() -> Result<Identity> {
        let boot = proc::text(Path::new("/proc/sys/kernel/random/boot_id"))?.trim().to_owned();
        Ok(Identity { boot, started: stat::read(std::process::id() as Pid)?.start_time })
    }
}

/// The checkpointer of this very process, and the files through which we hear of it. None of them is open when it looks at us.
struct Helper {
    dir: PathBuf,
    pid: Pid,
}

/// `$1`: directory; the rest: the command. Waits until its starter is gone from the tree and we have let it trace us.
const SCRIPT: &str = r#"dir=$1; shift
{ n=0; until [ -e "$dir/go" ]; do n=$((n+1)); [ $n -lt 3000 ] || exit 1; sleep 0.01; done
  "$@" >"$dir/out" 2>"$dir/err"; echo $? >"$dir/.status"; mv "$dir/.status" "$dir/status"; } </dev/null >/dev/null 2>&1 &
echo $!"#;

impl Helper {
    fn start(options: &Options) -> Result<Helper> {
        let dir = tempfile::Builder::new().prefix("stillframe-").tempdir().context("cannot make a temporary directory")?.keep();
        let mut helper = Helper { dir, pid: 0 };
        let mut wanted = command()?;
        arguments(&mut wanted, std::process::id() as Pid, options);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SCRIPT, "stillframe"]).arg(&helper.dir).arg(wanted.get_program()).args(wanted.get_args());
        let said = shell.stdin(Stdio::null()).stderr(Stdio::null()).output().context("cannot run /bin/sh")?;
        let pid: Option<Pid> = String::from_utf8_lossy(&said.stdout).trim().parse().ok();
        let pid = pid.ok_or_else(|| Error::new(Kind::Io, "cannot start the checkpointer"))?;
        helper.pid = pid;
        ptracer::allow(pid);
        fs::write(helper.dir.join("go"), "").at("write", &helper.dir.join("go"))?;
        Ok(helper)
    }

    /// In the original until the command has ended; the second instance finds itself in here and leaves at once.
    fn wait(self, us: &Identity) -> Result<Outcome> {
        // Without opening a file: at the instant of the frame no descriptor of ours may lead to one that goes away.
        let over = || self.dir.join("status").exists() || nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), None).is_err();
        while !over() {
            std::thread::sleep(TICK);
        }
        let now = Identity::now()?;
        if now != *us {
            // The files are the original's, which may still need them.
            std::mem::forget(self);
            return Ok(Outcome::Restored(Restored { pid: std::process::id() as Pid, other_boot: now.boot != us.boot }));
        }
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        match read("status").trim() {
            "0" => read_saved(&read("out")).map(Outcome::Saved),
            "" => Err(Error::new(Kind::Io, "the checkpointer was killed")),
            other => Err(Error::refused(last_line(&read("err"), &format!("the checkpointer ended with status {other}")))),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        ptracer::allow(0);
        let _ = fs::remove_dir_all(&self.dir);
    }
}
