//! For tests with real programs: a live process tree in a scratch directory, its frames, and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub mod moody;
pub mod net;
pub mod ps;

/// How long any single step may take before it counts as hung.
pub const BOUND: Duration = Duration::from_secs(60);
/// Carried by every process of a live tree, so that all of them can be found again.
const MARK: &str = "STILLFRAME_TEST_TREE";

/// Whether the long variants are wanted.
pub fn long() -> bool {
    std::env::var_os("STILLFRAME_STRESS").is_some_and(|value| value == "1")
}

/// The plain number of rounds, or the one for a long run.
pub fn rounds(plain: usize, stress: usize) -> usize {
    match long() {
        true => stress,
        false => plain,
    }
}

/// Where the command line under test is.
pub fn stillframe() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillframe"));
    command.stdin(Stdio::null());
    command
}

/// Polls until the probe gives a value; panics past the bound.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + BOUND;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "still waiting after {BOUND:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Compiles `tests/DIR/NAME.c`.
pub fn build(dir: &str, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(dir).join(format!("{name}.c"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(dir);
    fs::create_dir_all(&out).unwrap();
    let program = out.join(name);
    // Under another name first: tests run at once, and an older copy may still be running.
    let fresh = tempfile::Builder::new().prefix(name).tempfile_in(&out).unwrap().into_temp_path();
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-pthread", "-o"]).arg(&*fresh).arg(&source);
    let done = cc.output().expect("a C compiler named cc is needed");
    assert!(done.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&done.stderr));
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
    fresh.persist(&program).unwrap();
    program
}

/// Path of a program that a test needs; `tests/run` installs them all.
pub fn need(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The system's own first: a shim of a version manager is another program than the one we name.
    let system = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let found = system.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is not installed; tests/run installs what the tests need"))
}

/// What `checkpoint --json` reports.
#[derive(Debug, serde::Deserialize)]
pub struct Report {
    pub frame: String,
    pub processes: usize,
    pub pause_ns: u64,
    pub durable_ns: u64,
    pub bytes: u64,
    pub method: String,
}

/// A scratch directory, a store, and the trees that work there; all end when dropped.
pub struct Stage {
    dir: TempDir,
    /// Roots of restored trees, with their start times: ids are used again.
    restored: Mutex<BTreeMap<i32, u64>>,
}

impl Stage {
    pub fn new() -> Stage {
        let dir = tempfile::Builder::new().prefix("stage-").tempdir().unwrap();
        // Servers drop their rights and still have to find their files.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for sub in ["work", "store"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        fs::set_permissions(dir.path().join("work"), fs::Permissions::from_mode(0o777)).unwrap();
        Stage { dir, restored: Default::default() }
    }

    pub fn work(&self, name: &str) -> PathBuf {
        self.dir.path().join("work").join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.work(name);
        // By rename: a running program must not read half a file.
        let fresh = self.work(&format!(".{name}.new"));
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, &path).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> Option<String> {
        fs::read(self.work(name)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The number in a file of the tree; `None` before there is one.
    /// A file that a program writes and renames may have been open at the frame's instant, which then depends on its name.
    pub fn hold_place(&self, name: &str) {
        std::fs::write(self.work(name), " ".repeat(64)).unwrap();
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        self.read(name)?.trim().parse().ok()
    }

    pub fn await_file(&self, name: &str) -> String {
        eventually(&format!("file {name}\n{}", self.log()), || self.read(name).filter(|text| !text.is_empty()))
    }

    /// Waits until the number in a file is above `than`.
    pub fn await_above(&self, name: &str, than: u64) -> u64 {
        eventually(&format!("{name} above {than}\n{}", self.log()), || {
            self.assert_unharmed();
            self.number(name).filter(|&number| number > than)
        })
    }

    /// Self-checking programs leave a file named `failed`.
    pub fn assert_unharmed(&self) {
        if let Some(text) = self.read("failed") {
            panic!("the program says: {text}\n{}", self.log());
        }
    }

    pub fn log(&self) -> String {
        let path = self.dir.path().join("log");
        format!("--- log ---\n{}", String::from_utf8_lossy(&fs::read(path).unwrap_or_default()))
    }

    /// Starts a program as the leader of a session of its own.
    pub fn start(&self, command: &mut Command) -> Live<'_> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        command.current_dir(self.dir.path().join("work")).env(MARK, self.dir.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // SAFETY: setsid and close_range are async-signal-safe and touch no memory of ours.
        unsafe {
            command.pre_exec(|| {
                // Whatever our starter left open (a make job server, say) is no part of the test.
                libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
                Ok(nix::unistd::setsid().map(drop)?)
            })
        };
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Live { stage: self, child }
    }

    /// Takes a frame and gives the report.
    pub fn checkpoint(&self, pid: i32, args: &[&str]) -> Report {
        self.try_checkpoint(pid, args).unwrap_or_else(|e| panic!("checkpoint {pid} {args:?}: {e}\n{}", self.log()))
    }

    pub fn try_checkpoint(&self, pid: i32, args: &[&str]) -> Result<Report, String> {
        let mut command = stillframe();
        command.args(["checkpoint", &pid.to_string(), "--name", "frame", "--json", "--store"]).arg(self.store()).args(args);
        let text = bounded(&mut command)?;
        serde_json::from_str(&text).map_err(|e| format!("{e} in {text:?}"))
    }

    /// Restores a frame (detached) and gives the root's pid.
    pub fn restore(&self, frame: &str, args: &[&str]) -> i32 {
        let pid = eventually("a restore whose process ids are free", || match self.try_restore(frame, args) {
            // Some other process of this machine was given one of the ids: wait until it ends.
            Err(e) if e.contains("in use") => None,
            done => Some(done.unwrap_or_else(|e| panic!("restore {frame} {args:?}: {e}\n{}", self.log()))),
        });
        if let Some(started) = ps::started(pid) {
            self.restored.lock().unwrap().insert(pid, started);
        }
        pid
    }

    pub fn try_restore(&self, frame: &str, args: &[&str]) -> Result<i32, String> {
        let mut command = stillframe();
        command.args(["restore", frame, "--detach", "--store"]).arg(self.store()).args(args);
        let text = bounded(&mut command)?;
        text.trim().parse().map_err(|_| format!("no pid in {text:?}"))
    }

    /// Every process of ours: `roots`, the restored, the marked, and all below them.
    pub fn members(&self, roots: &[i32]) -> Vec<i32> {
        let needle = [MARK.as_bytes(), b"=", self.dir.path().as_os_str().as_bytes()].concat();
        let restored = self.restored.lock().unwrap().clone().into_iter().filter(|&(pid, started)| ps::started(pid) == Some(started)).map(|(pid, _)| pid);
        let mut all: BTreeSet<i32> = roots.iter().copied().chain(restored).filter(|&pid| ps::alive(pid)).collect();
        for pid in ps::all() {
            let marked = fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| environ.split(|b| *b == 0).any(|var| var == needle));
            if marked {
                all.insert(pid);
            }
        }
        ps::with_descendants(all)
    }

    /// kill -9 for every process of ours, until none is left.
    pub fn kill_all(&self) {
        eventually("the end of all processes after SIGKILL", || {
            let members = self.members(&[]);
            ps::kill_at_once(&members);
            members.is_empty().then_some(())
        });
        self.restored.lock().unwrap().clear();
    }

    /// The file of a frame NAME@SEQ.
    pub fn frame_file(&self, frame: &str) -> PathBuf {
        let (name, seq) = frame.split_once('@').expect("NAME@SEQ");
        let seq: u64 = seq.parse().unwrap();
        let found = self.stored().into_iter().find(|path| path.strip_prefix(name).and_then(|file| file.strip_prefix('/')?.strip_suffix(".frame")?.parse().ok()) == Some(seq));
        self.store().join(found.unwrap_or_else(|| panic!("{frame} is not in the store")))
    }

    /// Frames and leftovers in the store, by path below it.
    pub fn stored(&self) -> Vec<String> {
        let names = fs::read_dir(self.store()).into_iter().flatten().flatten();
        let files = names.flat_map(|name| fs::read_dir(name.path()).into_iter().flatten().flatten());
        files.map(|file| file.path().strip_prefix(self.store()).unwrap().display().to_string()).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Runs a command with a time bound; its output on success, its one-line error otherwise.
pub fn bounded(command: &mut Command) -> Result<String, String> {
    // Files, not pipes: restored processes must not be able to hold us up.
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| File::create(dir.path().join(name)).unwrap();
    let mut child = command.stdout(open("out")).stderr(open("err")).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let end = Instant::now() + BOUND * 2;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > end => {
                child.kill().unwrap();
                child.wait().unwrap();
                return Err(format!("hangs: {command:?}"));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let read = |name: &str| String::from_utf8_lossy(&fs::read(dir.path().join(name)).unwrap()).into_owned();
    match status.code() {
        Some(0) => Ok(read("out")),
        Some(1) => Err(read("err") + &read("out")),
        _ => Err(format!("{status}: {}{}", read("err"), read("out"))),
    }
}

/// Gone, or a zombie that its own `Live` in this test is to wait for.
fn freed(pid: i32) -> bool {
    ps::stat(pid).is_none_or(|(_, parent)| parent == std::process::id() as i32)
}

/// A tree that runs: its root is our child.
pub struct Live<'a> {
    stage: &'a Stage,
    child: Child,
}

impl Live<'_> {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the program ended: {status}\n{}", self.stage.log());
        }
    }

    /// kill -9 for the whole tree, and waits until no id of it is in use.
    pub fn kill(mut self) {
        self.end();
    }

    /// Waits until it ends by itself.
    pub fn finish(mut self) -> std::process::ExitStatus {
        eventually("the end of the program", || self.child.try_wait().unwrap())
    }

    fn end(&mut self) {
        let root = self.pid();
        let members = self.stage.members(&[root]);
        ps::kill_at_once(&members);
        self.child.wait().unwrap();
        self.stage.kill_all();
        eventually("the ids of the killed tree to be free", || members.iter().all(|&pid| freed(pid)).then_some(()));
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        // Also on a panic: nothing may outlive its test.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.end();
        }
    }
}
