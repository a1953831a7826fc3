//! Shared by the tests that work on live processes: building the C tracees,
//! starting them, running the command line, and cleaning up what is left.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long any single step may take before it counts as hung.
pub const BOUND: Duration = Duration::from_secs(60);

const CFLAGS: &[&str] = &[
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-O2",
    "-pthread",
];

/// Compiles a tracee and gives the path of its program.
pub fn build(name: &str) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tracees")
        .join(format!("{name}.c"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tracees");
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let program = dir.join(name);
    // Under another name first: an older copy may still be running.
    let fresh = dir.join(format!("{name}.{}", std::process::id()));
    let out = Command::new("cc")
        .args(CFLAGS)
        .arg("-o")
        .args([&fresh, &source])
        .output()
        .map_err(|e| format!("cannot run cc: {e}"))?;
    if !out.status.success() {
        return Err(format!(
            "cc {name}.c:\n{}",
            String::from_utf8_lossy(&out.stderr)
        ));
    }
    fs::rename(&fresh, &program).map_err(|e| format!("{}: {e}", program.display()))?;
    Ok(program)
}

/// Polls until the closure gives a value; `None` after [`BOUND`].
pub fn poll_until<T>(mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + BOUND;
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A scratch directory for one tracee, and beside it a store for its frames.
pub struct Scratch {
    root: TempDir,
}

impl Scratch {
    /// Makes the directories, open to tracees that give up being root.
    pub fn new() -> io::Result<Self> {
        let root = tempfile::Builder::new().prefix("tracee-").tempdir()?;
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
        fs::create_dir(root.path().join("work"))?;
        fs::create_dir(root.path().join("store"))?;
        Ok(Self { root })
    }

    /// Where the tracee works; no other process has this path in its arguments.
    pub fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }

    /// Where its frames go.
    pub fn store(&self) -> PathBuf {
        self.root.path().join("store")
    }

    /// Content of a file of the tracee, if it is there.
    pub fn read(&self, name: &str) -> Option<String> {
        fs::read(self.work().join(name))
            .ok()
            .map(|b| String::from_utf8_lossy(&b).into_owned())
    }

    /// Tells the tracee to go on.
    pub fn go(&self) -> Result<(), String> {
        File::create(self.work().join("go"))
            .map(drop)
            .map_err(|e| format!("cannot say go: {e}"))
    }

    /// Waits for the verdict and gives the remark after "ok".
    pub fn verdict(&self) -> Result<String, String> {
        let text =
            poll_until(|| self.read("result")).ok_or("no result: the tracee hangs or died")?;
        match text.strip_prefix("ok") {
            Some(remark) => Ok(remark.trim().to_owned()),
            None => Err(format!("result: {text}")),
        }
    }

    /// Everything that helps to understand a failure.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for name in ["result", "log", "cli"] {
            let path = if name == "cli" {
                self.root.path().join(name)
            } else {
                self.work().join(name)
            };
            if let Ok(content) = fs::read(path) {
                text += &format!("--- {name} ---\n{}\n", String::from_utf8_lossy(&content));
            }
        }
        for pid in self.members() {
            text += &format!("--- still alive: {pid}, {} ---\n", where_blocked(pid));
        }
        text
    }

    /// Starts a tracee as the leader of a session of its own and waits until it is set up.
    pub fn start(&self, program: &Path) -> Result<Child, String> {
        let log = File::create(self.work().join("log")).map_err(|e| format!("log: {e}"))?;
        let again = log.try_clone().map_err(|e| format!("log: {e}"))?;
        let mut command = Command::new(program);
        command
            .arg(self.work())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(again);
        // SAFETY: setsid is async-signal-safe and touches no memory of ours.
        unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) };
        let mut child = command.spawn().map_err(|e| format!("cannot start: {e}"))?;
        let ready = self.work().join("ready");
        let seen = poll_until(|| match child.try_wait() {
            Ok(None) if !ready.exists() => None,
            _ => Some(ready.exists()),
        });
        match seen {
            Some(true) => Ok(child),
            Some(false) => Err("it ended before it was ready".into()),
            None => Err("it does not become ready".into()),
        }
    }

    /// Runs `stillframe` and gives its standard output; both outputs are kept for a report.
    pub fn stillframe<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String, String> {
        // Files, not pipes: restored processes must not be able to hold us up.
        let open =
            |name: &str| File::create(self.root.path().join(name)).map_err(|e| e.to_string());
        let mut child = Command::new(env!("CARGO_BIN_EXE_stillframe"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(open("stdout")?)
            .stderr(open("stderr")?)
            .spawn()
            .map_err(|e| format!("cannot run stillframe: {e}"))?;
        let status = wait_bounded(&mut child);
        let read = |name: &str| fs::read_to_string(self.root.path().join(name)).unwrap_or_default();
        let (stdout, stderr) = (read("stdout"), read("stderr"));
        let line: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        let report = format!("stillframe {}\n{stdout}{stderr}", line.join(" "));
        let before = read("cli");
        fs::write(self.root.path().join("cli"), format!("{before}{report}"))
            .map_err(|e| e.to_string())?;
        match status {
            Some(s) if s.success() => Ok(stdout),
            Some(s) => Err(format!("stillframe: {s}: {stderr}")),
            None => Err("stillframe hangs".into()),
        }
    }

    /// Pids of the processes whose arguments name this scratch directory.
    pub fn members(&self) -> Vec<i32> {
        let work = self.work();
        let needle = work.as_os_str().as_bytes();
        all_pids()
            .filter(|pid| {
                fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.split(|b| *b == 0).any(|arg| arg == needle))
            })
            .collect()
    }

    /// Every process and thread id that the tree below `root` occupies, zombies included.
    pub fn occupied(&self, root: i32) -> Vec<i32> {
        let mut pids = self.members();
        pids.push(root);
        let parents: Vec<(i32, i32)> = all_pids().filter_map(|p| Some((p, stat(p)?.1))).collect();
        // Pids are not ordered by age, so repeat until nothing is added.
        loop {
            let more: Vec<i32> = parents
                .iter()
                .filter(|(p, parent)| pids.contains(parent) && !pids.contains(p))
                .map(|(p, _)| *p)
                .collect();
            if more.is_empty() {
                break;
            }
            pids.extend(more);
        }
        let tids = pids
            .iter()
            .flat_map(|pid| numbers_in(&format!("/proc/{pid}/task")));
        let mut all: Vec<i32> = tids.chain(pids.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Kills what is left of the tracee; new forks are caught by looking again.
    pub fn kill_all(&self) {
        poll_until(|| {
            let left = self.members();
            for pid in &left {
                let pid = nix::unistd::Pid::from_raw(*pid);
                // It may have ended in between.
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Waits for a child of ours; kills it and gives `None` when it takes too long.
pub fn wait_bounded(child: &mut Child) -> Option<ExitStatus> {
    let status = poll_until(|| child.try_wait().ok().flatten());
    if status.is_none() {
        // Both fail only if it has ended by now.
        let _ = child.kill();
        let _ = child.wait();
    }
    status
}

/// Waits until none of the ids exists any more, not even as a zombie.
pub fn wait_gone(ids: &[i32]) -> Result<(), String> {
    let left = |ids: &[i32]| -> Vec<i32> {
        ids.iter()
            .copied()
            .filter(|id| Path::new(&format!("/proc/{id}")).exists())
            .collect()
    };
    match poll_until(|| left(ids).is_empty().then_some(())) {
        Some(()) => Ok(()),
        None => Err(format!("still there after the kill: {:?}", left(ids))),
    }
}

/// Waits until a process that is not our child has ended (gone or a zombie).
pub fn wait_ended(pid: i32) -> Result<(), String> {
    poll_until(|| matches!(stat(pid), None | Some(('Z' | 'X', _))).then_some(())).ok_or_else(|| {
        format!(
            "the restored root {pid} does not end ({})",
            where_blocked(pid)
        )
    })
}

/// State letter and parent of a process.
fn stat(pid: i32) -> Option<(char, i32)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    // The name may hold blanks and parentheses; the last one ends it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn numbers_in(dir: &str) -> Vec<i32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

fn all_pids() -> impl Iterator<Item = i32> {
    numbers_in("/proc").into_iter()
}

fn where_blocked(pid: i32) -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    format!(
        "wchan {}, syscall {}",
        read("wchan"),
        read("syscall").trim()
    )
}
