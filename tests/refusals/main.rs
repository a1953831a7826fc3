//! Targets that cannot be framed: refused in one line that names the reason, and left unharmed.

#[path = "../kit/mod.rs"]
#[allow(dead_code)] // every test binary uses its part
mod kit;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use kit::{bounded, build, eventually, need, ps, Live, Stage};

const NOBODY: u32 = 65534;
/// Works, and counts in `beat`.
const WORKER: &str = "
import os, threading, time
threading.Thread(target=lambda: time.sleep(600), daemon=True).start()
n = 0
while True:
    n += 1
    with open('.beat', 'w') as f: f.write(str(n))
    os.rename('.beat', 'beat')
    time.sleep(0.005)
";

fn worker() -> Command {
    let mut command = Command::new(need("python3"));
    command.args(["-c", WORKER]);
    command
}

fn as_nobody(mut command: Command) -> Command {
    command.uid(NOBODY).gid(NOBODY);
    command
}

/// One line with all the words; no frame; a target that goes on.
fn assert_refused(stage: &Stage, pid: i32, words: &[&str]) {
    let error = stage.try_checkpoint(pid, &[]).expect_err("should be refused");
    assert_clear(&error, words);
    assert!(!stage.stored().iter().any(|path| path.contains(".frame")), "{:?}", stage.stored());
}

fn assert_clear(error: &str, words: &[&str]) {
    assert!(error.starts_with("stillframe: ") && error.lines().count() == 1, "not one line: {error:?}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

fn goes_on(stage: &Stage) {
    stage.await_above("beat", stage.number("beat").unwrap_or(0) + 5);
}

fn traced_by(tracer: &str, start: impl Fn(&mut Command, i32)) {
    let stage = Stage::new();
    let mut live = stage.start(&mut worker());
    goes_on(&stage);
    let mut command = Command::new(need(tracer));
    start(&mut command, live.pid());
    let tracing: Live<'_> = stage.start(&mut command);
    eventually("the tracer", || (ps::status(live.pid(), "TracerPid")? != "0").then_some(()));
    let by = ps::status(live.pid(), "TracerPid").unwrap();
    assert_refused(&stage, live.pid(), &[tracer, &by]);
    live.assert_alive();
    assert_eq!(ps::status(live.pid(), "TracerPid").as_deref(), Some(by.as_str()), "the tracer keeps its target");
    drop(tracing);
}

#[test]
fn a_process_under_strace() {
    traced_by("strace", |command, pid| {
        command.args(["-f", "-o", "/dev/null", "-p", &pid.to_string()]);
    });
}

#[test]
fn a_process_under_gdb() {
    traced_by("gdb", |command, pid| {
        command.args(["-q", "-nx", "-batch", "-p", &pid.to_string(), "-ex", "shell sleep 600"]);
    });
}

#[test]
fn a_thread_instead_of_a_process() {
    let stage = Stage::new();
    let live = stage.start(&mut worker());
    goes_on(&stage);
    let tasks = fs::read_dir(format!("/proc/{}/task", live.pid())).unwrap();
    let tids = tasks.filter_map(|task| task.unwrap().file_name().to_str()?.parse::<i32>().ok());
    let tid = tids.filter(|&tid| tid != live.pid()).last().expect("it has a second thread");
    assert_refused(&stage, tid, &["thread", &live.pid().to_string()]);
    goes_on(&stage);
}

#[test]
fn no_such_process() {
    let stage = Stage::new();
    let free = (20_000..30_000).find(|&pid| !ps::exists(pid)).unwrap();
    assert_refused(&stage, free, &[&free.to_string(), "no such process"]);
}

#[test]
fn a_kernel_thread_and_ourselves() {
    let stage = Stage::new();
    let own = std::process::id() as i32;
    assert_refused(&stage, own, &[&own.to_string()]);
    match ps::all().into_iter().find(|&pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "kthreadd")) {
        Some(pid) => assert_refused(&stage, pid, &["kernel"]),
        None => eprintln!("SKIPPED: kernel threads are not visible from this pid namespace"),
    }
}

fn exotic(what: &str) {
    let stage = Stage::new();
    let mut live = stage.start(Command::new(build("refusals", "exotic")).arg(what));
    let ready = stage.await_file("ready");
    if ready != "ok" {
        eprintln!("SKIPPED: this kernel gives no {what}: {ready}");
        return;
    }
    assert_refused(&stage, live.pid(), &[what]);
    live.assert_alive();
}

#[test]
fn a_user_of_io_uring() {
    exotic("io_uring");
}

#[test]
fn a_user_of_userfaultfd() {
    exotic("userfaultfd");
}

const TINY_32: &str = "
static long call(long n, long a, long b, long c) { long r; __asm__ volatile(\"int $0x80\" : \"=a\"(r) : \"a\"(n), \"b\"(a), \"c\"(b), \"d\"(c) : \"memory\"); return r; }
void _start(void) { for (;;) { call(29, 0, 0, 0); } }
";

/// Built without a C library, so that the compiler alone decides whether there is one.
#[test]
fn a_32_bit_program() {
    let stage = Stage::new();
    let source = stage.write("tiny.c", TINY_32);
    let program = stage.work("tiny");
    let mut cc = Command::new("cc");
    cc.args(["-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie", "-o"]).arg(&program).arg(source);
    bounded(&mut cc).expect("cc -m32 -nostdlib");
    match Command::new(&program).spawn() {
        Err(e) => eprintln!("SKIPPED: this kernel runs no 32-bit programs: {e}"),
        Ok(mut child) => {
            child.kill().unwrap();
            child.wait().unwrap();
            let mut live = stage.start(&mut Command::new(&program));
            assert_refused(&stage, live.pid(), &["32-bit"]);
            live.assert_alive();
        }
    }
}

/// The command where any user may run it, with a store of the user's own.
struct Unprivileged {
    stage: Stage,
    program: PathBuf,
}

impl Unprivileged {
    fn new() -> Unprivileged {
        assert!(nix::unistd::geteuid().is_root(), "these tests start as root and give it up");
        let stage = Stage::new();
        let program = stage.work("stillframe");
        fs::copy(env!("CARGO_BIN_EXE_stillframe"), &program).unwrap();
        Unprivileged { stage, program }
    }

    fn run(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(args).arg("--store").arg(self.stage.work("own-store"));
        bounded(&mut as_nobody(command))
    }
}

#[test]
fn another_users_process() {
    let all = Unprivileged::new();
    let mut live = all.stage.start(&mut worker());
    goes_on(&all.stage);
    let error = all.run(&["checkpoint", &live.pid().to_string()]).expect_err("another user's process");
    assert_clear(&error, &["CAP_SYS_PTRACE"]);
    goes_on(&all.stage);
    live.assert_alive();
}

#[test]
fn ones_own_process_needs_no_root() {
    let all = Unprivileged::new();
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_else(|_| "0".into());
    let mut live = all.stage.start(&mut as_nobody(worker()));
    goes_on(&all.stage);
    let taken = all.run(&["checkpoint", &live.pid().to_string(), "--name", "own"]);
    if yama.trim() != "0" {
        eprintln!("SKIPPED: kernel.yama.ptrace_scope is {}; checked only that the refusal says so", yama.trim());
        assert_clear(&taken.expect_err("yama forbids it"), &["yama"]);
        return;
    }
    taken.unwrap_or_else(|e| panic!("{e}"));
    goes_on(&all.stage);
    live.assert_alive();
    live.kill();
    let beat = all.stage.number("beat").unwrap();
    // Its pids need privileges; root brings the user's process back as the user's.
    let frame = fs::read_dir(all.stage.work("own-store/own")).unwrap().map(|file| file.unwrap().path()).find(|path| path.extension().is_some_and(|end| end == "frame"));
    let frame = frame.expect("its frame");
    let root = all.stage.restore(frame.to_str().unwrap(), &[]);
    all.stage.await_above("beat", beat + 5);
    assert!(ps::status(root, "Uid").is_some_and(|uids| uids.split_whitespace().all(|uid| uid == "65534")));
}
