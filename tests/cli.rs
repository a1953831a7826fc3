//! Every subcommand as a user meets it, above all when something is wrong: one line that says so, a status, nothing changed.

#[allow(dead_code)]
mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use common::{poll_until, wait_gone};
use nix::sys::signal::SigSet;
use serde_json::Value;
use stillframe::sys::children::start_clean;
use tempfile::TempDir;

/// A store of its own.
struct Store {
    dir: TempDir,
}

impl Store {
    fn new() -> Store {
        Store { dir: tempfile::tempdir().unwrap() }
    }

    /// One that holds frames `nap@1` to `nap@count` of a sleeping program.
    fn with_frames(count: usize) -> Store {
        let store = Store::new();
        let nap = Nap::start();
        for _ in 0..count {
            store.ok(&["checkpoint", &nap.pid(), "--name", "nap"]);
        }
        store
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillframe"));
        command.args(args).env("STILLFRAME_STORE", self.dir.path()).stdin(Stdio::null()).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
        assert!(out.status.success(), "{args:?}: {stdout}{stderr}");
        stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Fails with status 1 and one line that contains `words`, and leaves the store as it was.
    fn fails(&self, args: &[&str], words: &str) {
        let before = self.content();
        let out = self.run(args);
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.starts_with("stillframe: ") && stderr.contains(words), "{args:?}: {stderr}");
        assert_eq!(self.content(), before, "{args:?} changed the store");
    }

    fn misused(&self, args: &[&str]) {
        let out = self.run(args);
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(text(&out.stdout).is_empty());
        // Who gives no command at all is shown what there is.
        let one_line = stderr.starts_with("stillframe: ") && stderr.lines().count() == 1;
        assert!(one_line || args.is_empty(), "{args:?}: {stderr}");
    }

    fn frame(&self, seq: u64) -> PathBuf {
        self.dir.path().join(format!("nap/{seq:08}.frame"))
    }

    /// Visible files and what is in them.
    fn content(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
        let frames = files(self.dir.path().to_owned()).flat_map(files);
        let mut all: Vec<_> = frames.filter_map(|path| Some((path.clone(), fs::read(&path).ok()?))).collect();
        all.retain(|(path, _)| path.extension().is_some());
        all.sort();
        all
    }

    /// Changes byte `at` of a frame.
    fn damage(&self, seq: u64, at: usize) {
        let mut bytes = fs::read(self.frame(seq)).unwrap();
        bytes[at] ^= 0xff;
        fs::write(self.frame(seq), bytes).unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A program that sleeps until it is dropped.
struct Nap(Child);

impl Nap {
    fn start() -> Nap {
        let mut command = Command::new("sleep");
        command.arg("1000").current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        // Without what happens to be open here: a pipe of somebody else could not be frozen.
        let nap = Nap(start_clean(&mut command, SigSet::empty()).spawn().unwrap());
        let comm = format!("/proc/{}/comm", nap.0.id());
        poll_until(|| fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n").then_some(())).unwrap();
        nap
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Nap {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn help_and_version_are_for_everyone() {
    let store = Store::new();
    for command in ["checkpoint", "restore", "run", "list", "inspect", "verify", "rm", "compact", "check"] {
        assert!(store.ok(&["help"]).contains(command));
        assert!(store.ok(&[command, "--help"]).contains("--store"));
    }
    assert!(store.ok(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn arguments_that_make_no_sense_have_status_2() {
    let store = Store::new();
    store.misused(&[]);
    store.misused(&["dream"]);
    store.misused(&["checkpoint"]);
    for pid in ["", "abc", "0", "-1", "99999999999", "1.5"] {
        store.misused(&["checkpoint", pid]);
    }
    store.misused(&["checkpoint", "1", "--compress", "gzip"]);
    store.misused(&["verify"]);
    store.misused(&["verify", "--all", "web"]);
    store.misused(&["rm"]);
    store.misused(&["rm", "--all", "--keep", "2", "web"]);
    store.misused(&["rm", "--keep", "0", "web"]);
    store.misused(&["run", "--name", "web"]);
    store.misused(&["run", "--", "true"]);
    store.misused(&["run", "--name", "web", "--every", "0s", "--", "true"]);
    store.misused(&["run", "--name", "web", "--every", "10", "--", "true"]);
    store.misused(&["inspect", "--json", "--maps", "web"]);
}

#[test]
fn processes_that_cannot_be_frozen_are_refused() {
    let store = Store::new();
    store.fails(&["checkpoint", "4194303"], "no such process");
    // In a pid namespace of its own, number 2 may be anything.
    if fs::read_to_string("/proc/2/comm").is_ok_and(|comm| comm.trim() == "kthreadd") {
        store.fails(&["checkpoint", "2"], "thread of the kernel");
    }
    store.fails(&["checkpoint", &std::process::id().to_string()], "run stillframe from outside the tree");
    let mut dead = Command::new("true").spawn().unwrap();
    let pid = dead.id().to_string();
    poll_until(|| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(" Z ").then_some(())).unwrap();
    store.fails(&["checkpoint", &pid], "zombie");
    dead.wait().unwrap();
}

#[test]
fn a_store_that_cannot_be_written_is_said_and_the_program_runs_on() {
    let (store, nap) = (Store::new(), Nap::start());
    store.fails(&["checkpoint", &nap.pid(), "--store", "/proc/nowhere"], "/proc/nowhere");
    store.fails(&["checkpoint", &nap.pid(), "--name", "a/b"], "cannot name a frame");
    let status = fs::read_to_string(format!("/proc/{}/status", nap.pid())).unwrap();
    assert!(status.contains("State:\tS") && status.contains("TracerPid:\t0"), "{status}");
}

#[test]
fn frames_that_are_not_there_are_said() {
    let store = Store::new();
    store.fails(&["list", "--store", "/nonexistent/store"], "does not exist");
    store.fails(&["status", "--config", "/nonexistent.toml"], "name it with --config");
    assert!(store.ok(&["list"]).contains("no frames"));
    assert_eq!(store.json(&["list", "--json"]), Value::Array(Vec::new()));
    assert!(store.ok(&["verify", "--all"]).contains("no frames"));
    store.fails(&["list", "web"], "no frame of web");
    for command in ["restore", "inspect", "verify", "compact"] {
        store.fails(&[command, "web"], "no frame of web");
        store.fails(&[command, "web@7"], "no frame web@7");
        store.fails(&[command, "web@x"], "names no frame");
        store.fails(&[command, "/nonexistent/a.frame"], "/nonexistent/a.frame");
    }
    store.fails(&["rm", "web@7"], "no frame web@7");
    store.fails(&["rm", "--all", "web"], "no frame of web");
    store.fails(&["rm", "web", "--keep", "1"], "no frame of web");
}

#[test]
fn list_shows_the_newest_last_and_the_damaged_too() {
    let store = Store::with_frames(3);
    store.damage(2, 40);
    let table = store.ok(&["list"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 4 && lines[0].starts_with("FRAME"), "{table}");
    assert!(lines[1].starts_with("nap@1") && lines[1].ends_with("intact"), "{table}");
    assert!(table.contains("not readable: frame ") && lines[3].starts_with("nap@3"), "{table}");
    let all = store.json(&["list", "nap", "--json"]);
    assert_eq!(all[0]["frame"], "nap@1");
    assert_eq!(all[0]["content"]["processes"], 1);
    assert!(all[0]["content"]["pages"].as_u64().unwrap() > 0 && all[0]["problem"].is_null());
    assert!(all[1]["content"].is_null() && all[1]["problem"].is_string());
    // A pipe is no terminal: no colours.
    assert!(!table.contains('\x1b'));
}

#[test]
fn inspect_tells_what_a_frame_holds() {
    let store = Store::with_frames(1);
    let shown = store.ok(&["inspect", "nap"]);
    for words in ["nap@1", "sleep  running, 1 thread", "descriptors", "/dev/null", "files it depends on", "Linux", "mappings"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(!shown.contains("[stack]") && !shown.contains("[vdso]"), "{shown}");
    let maps = store.ok(&["inspect", "--maps", store.frame(1).to_str().unwrap()]);
    assert!(maps.contains("[vdso]") && maps.contains("rw-p") && maps.contains("anonymous"), "{maps}");
    let facts = store.json(&["inspect", "nap@1", "--json"]);
    assert_eq!(facts["frame"], "nap@1");
    assert_eq!(facts["bytes"], fs::metadata(store.frame(1)).unwrap().len());
    assert_eq!(facts["manifest"]["processes"][0]["name"], "sleep");
    assert!(facts["blocks"].as_u64().unwrap() > 0 && facts["compression_ratio"].as_f64().unwrap() >= 1.0);
}

#[test]
fn verify_names_what_is_damaged_and_goes_on() {
    let store = Store::with_frames(3);
    assert_eq!(store.ok(&["verify", "--all"]).matches(": ok, ").count(), 3);
    assert_eq!(store.ok(&["verify", "--all", "--quiet"]), "");
    // In the first block, which only a full check reads.
    store.damage(2, 200);
    assert!(store.ok(&["list"]).matches("intact").count() == 3);
    let out = store.run(&["verify", "--all"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stdout).contains("nap@1: ok") && text(&out.stdout).contains("nap@3: ok"));
    assert!(text(&out.stderr).starts_with("stillframe: nap@2: ") && text(&out.stderr).lines().count() == 1);
    store.fails(&["verify", "nap@2", "--quiet"], "damaged");
    let out = store.run(&["verify", "nap@2", "--json"]);
    let verdict: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(verdict["ok"] == false && verdict["problem"].is_string());
}

#[test]
fn damaged_frames_and_future_ones_are_refused() {
    let store = Store::with_frames(1);
    let whole = fs::read(store.frame(1)).unwrap();
    // The magic, a checksummed field, the first block, the footer.
    for at in [0, 30, 200, whole.len() - 10] {
        store.damage(1, at);
        store.fails(&["restore", "nap"], "frame");
        store.fails(&["verify", "nap"], "nap");
        fs::write(store.frame(1), &whole).unwrap();
    }
    fs::write(store.frame(1), &whole[..whole.len() / 2]).unwrap();
    store.fails(&["restore", "nap"], "damaged");
    let mut future = whole.clone();
    future[8..12].copy_from_slice(&99u32.to_le_bytes());
    let sum = crc32fast::hash(&future[..92]);
    future[92..96].copy_from_slice(&sum.to_le_bytes());
    fs::write(store.frame(1), &future).unwrap();
    for command in ["restore", "inspect", "verify"] {
        store.fails(&[command, "nap"], "newer");
    }
    fs::write(store.frame(1), "").unwrap();
    store.fails(&["inspect", "nap"], "damaged");
    store.fails(&["verify", "/dev/null/x.frame"], "x.frame");
    store.fails(&["inspect", "/dev/null"], "not a regular file");
}

#[test]
fn rm_removes_what_is_asked_and_nothing_else() {
    let store = Store::with_frames(6);
    store.fails(&["rm", "nap"], "rm --all nap");
    store.fails(&["rm", "nap@1", "nap@9"], "no frame nap@9");
    store.fails(&["rm", "--all", "nap@1"], "single frame");
    assert_eq!(store.ok(&["rm", "nap@2", "nap@1", "nap@2"]), "removed nap@1\nremoved nap@2\n");
    assert_eq!(store.ok(&["rm", "nap", "--keep", "3"]), "removed nap@3\n");
    assert_eq!(store.ok(&["rm", "nap", "--keep", "3"]), "");
    store.damage(5, 9);
    assert_eq!(store.ok(&["rm", "--quiet", "nap@5"]), "");
    assert_eq!(store.ok(&["rm", "--all", "nap"]).lines().count(), 2);
    assert!(store.content().is_empty());
}

#[test]
fn an_id_in_use_is_refused_and_its_holder_left_alone() {
    let (store, nap) = (Store::new(), Nap::start());
    store.ok(&["checkpoint", &nap.pid(), "--name", "nap"]);
    store.fails(&["restore", "nap"], "in use");
    assert!(fs::read_to_string(format!("/proc/{}/comm", nap.pid())).unwrap().contains("sleep"));
}

#[test]
fn check_tries_everything() {
    let store = Store::new();
    let table = store.ok(&["check"]);
    assert!(table.contains("pidfd_getfd") && table.contains("checkpoint and restore work here"), "{table}");
    let answer = store.json(&["check", "--json"]);
    let findings = answer["findings"].as_array().unwrap();
    assert!(answer["ok"] == true && findings.len() > 20);
    assert!(findings.iter().all(|finding| finding["present"] == true || finding["problem"].is_string()));
    assert_eq!(store.ok(&["check", "--quiet"]), "");
    // A store need not exist, but it must be possible.
    store.ok(&["check", "--store", "/tmp/nonexistent/store"]);
    assert_eq!(store.run(&["check", "--store", "/proc/store"]).status.code(), Some(1));
}

#[test]
fn check_without_privileges_says_so() {
    let store = Store::new();
    // Where an unprivileged user can read it.
    let program = store.dir.path().join("stillframe");
    fs::copy(env!("CARGO_BIN_EXE_stillframe"), &program).unwrap();
    fs::set_permissions(store.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let out = Command::new(program).args(["check", "--store", "/tmp"]).uid(65534).gid(65534).output().unwrap();
    let table = text(&out.stdout);
    assert_eq!(out.status.code(), Some(1), "{table}");
    assert!(table.lines().any(|line| line.starts_with("clone3 set_tid") && line.contains("NO, required")), "{table}");
    assert!(table.contains("CAP_CHECKPOINT_RESTORE") && table.contains("cannot work here"), "{table}");
}

#[test]
fn a_frame_goes_the_whole_way() {
    let store = Store::new();
    const ATTEMPTS: usize = 5;
    for attempt in 1.. {
        let nap = Nap::start();
        let pid = nap.pid();
        store.ok(&["checkpoint", &pid, "--name", "nap", "--then", "kill"]);
        drop(nap);
        let id: i32 = pid.parse().unwrap();
        wait_gone(&[id]).unwrap();
        let out = store.run(&["restore", "nap", "--detach"]);
        if text(&out.stderr).contains("in use") && attempt < ATTEMPTS {
            continue;
        }
        assert_eq!(text(&out.stdout).trim(), pid, "{}", text(&out.stderr));
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(comm, "sleep\n");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL).unwrap();
        return;
    }
}
