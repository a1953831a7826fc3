//! Kills a writer at each of its system calls in turn: the store must come out whole every time.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use stillframe::image::{Compression, Header};
use stillframe::store::{DirStore, FrameRef, Store};
use stillframe::sys::ptrace::{self, Event};
use stillframe::Result;

/// Tells the test binary that it is the writer to be killed, and in which store.
const STORE: &str = "STILLFRAME_TEST_CRASH_STORE";
/// Tells it whether to remove the newest frame instead of making one.
const REMOVE: &str = "STILLFRAME_TEST_CRASH_REMOVE";
const READY: &str = "ready to be killed";

fn take(store: &DirStore) -> Result<FrameRef> {
    let pending = store.begin("web")?;
    let mut writer = pending.writer(&Header::new(None))?;
    writer.put(0, 0, &[7; 300_000], Compression::None)?;
    let written = writer.finish(b"{}")?;
    store.commit(pending, &written)
}

/// The writer: waits until it is traced, then does its one deed.
fn writer(store: &Path) {
    let store = DirStore::new(store);
    // The harness runs a test in a thread of its own, so that is the one to trace.
    println!("{READY} {}", nix::unistd::gettid());
    std::io::stdin().read_exact(&mut [0]).unwrap();
    match env::var_os(REMOVE) {
        Some(_) => store.remove(&store.newest("web").unwrap()).unwrap(),
        None => drop(take(&store).unwrap()),
    }
    // Skips whatever the test harness would still do, which is none of our steps.
    std::process::exit(0);
}

fn spawn(store: &Path, test: &str, remove: bool) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--test-threads=1", "--nocapture"]).env(STORE, store);
    if remove {
        command.env(REMOVE, "1");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Waits until the writer is ready, and finds out which thread it is.
fn ready(out: &mut BufReader<ChildStdout>) -> libc::pid_t {
    loop {
        let mut line = String::new();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "the writer died early");
        if let Some((_, tid)) = line.split_once(READY) {
            return tid.trim().parse().unwrap();
        }
    }
}

/// Lets the writer make `steps` entries to or exits from system calls, then kills it; false if it was done before.
fn kill_after(steps: usize, store: &Path, test: &str, remove: bool) -> bool {
    watch(steps, store, test, remove, |_| {})
}

/// The same, and shows `see` the thread at each step.
fn watch(steps: usize, store: &Path, test: &str, remove: bool, mut see: impl FnMut(libc::pid_t)) -> bool {
    let mut child = spawn(store, test, remove);
    // Lives as long as the writer, who would trip over a closed pipe.
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let tid = ready(&mut out);
    ptrace::seize(tid, libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(tid).unwrap();
    assert_eq!(ptrace::wait(tid, true).unwrap(), Some(Event::Stop));
    child.stdin.take().unwrap().write_all(b"!").unwrap();
    for _ in 0..steps {
        ptrace::syscall_stop(tid).unwrap();
        match ptrace::wait(tid, true).unwrap() {
            Some(Event::Syscall) => see(tid),
            Some(Event::Gone(status)) => {
                assert_eq!(status, 0, "the writer failed by itself");
                child.wait().unwrap();
                return false;
            }
            other => panic!("unexpected stop {other:?}"),
        }
    }
    child.kill().unwrap();
    // The process is not gone before its tracer has taken note of the thread's end.
    while !matches!(ptrace::wait(tid, true).unwrap(), Some(Event::Gone(_))) {}
    child.wait().unwrap();
    true
}

/// Every listed frame is whole, and nothing but known files lies about.
fn assert_whole(store: &DirStore) -> Vec<u64> {
    let frames = store.list(Some("web")).unwrap();
    for frame in &frames {
        store.open(frame).unwrap().verify(&mut |_, _| {}).unwrap();
    }
    frames.iter().map(FrameRef::seq).collect()
}

fn partials(store: &DirStore) -> usize {
    let entries = store.root().join("web").read_dir().unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".partial")).count()
}

/// Kills the writer at every step and looks after each; `done` gives the numbers that a finished deed leaves.
fn replay(test: &str, remove: bool, done: impl Fn(u64) -> Vec<u64>) {
    if let Some(store) = env::var_os(STORE) {
        return writer(Path::new(&store));
    }
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::new(dir.path());
    take(&store).unwrap();
    let mut last = take(&store).unwrap().seq();
    let (mut steps, mut finished) = (0, 0);
    while kill_after(steps, dir.path(), test, remove) {
        let after = assert_whole(&store);
        finished += usize::from(after == done(last));
        assert!(after == [last - 1, last] || after == done(last), "{last} became {after:?} after {steps} steps");
        last = last.max(after.last().copied().unwrap_or(0));
        // The next writer carries on with a number never seen before, and clears the wreck away.
        let next = take(&store).unwrap().seq();
        assert_eq!((next, partials(&store)), (last + 1, 0), "after {steps} steps");
        last = take(&store).unwrap().seq();
        store.retain("web", 2).unwrap();
        steps += 1;
    }
    assert!(steps > 40 && (1..steps).contains(&finished), "killed {steps} times, {finished} of them too late");
}

#[test]
fn killed_commit_leaves_the_store_whole() {
    replay("killed_commit_leaves_the_store_whole", false, |last| vec![last - 1, last, last + 1]);
}

#[test]
fn killed_removal_leaves_the_store_whole() {
    replay("killed_removal_leaves_the_store_whole", true, |last| vec![last - 1]);
}

/// Killing a process loses none of its writes, so that what a loss of power needs is asked of the order of its calls.
#[test]
#[cfg(target_arch = "x86_64")]
fn commit_syncs_the_frame_before_the_rename_and_the_directory_after() {
    let test = "commit_syncs_the_frame_before_the_rename_and_the_directory_after";
    if let Some(store) = env::var_os(STORE) {
        return writer(Path::new(&store));
    }
    let dir = tempfile::tempdir().unwrap();
    take(&DirStore::new(dir.path())).unwrap();
    let mut calls = Vec::new();
    let see = |tid| calls.push(ptrace::regs(tid).unwrap().orig_rax as i64);
    assert!(!watch(usize::MAX, dir.path(), test, false, see), "the writer runs to its end");
    calls.retain(|call| [libc::SYS_write, libc::SYS_fsync, libc::SYS_renameat2].contains(call));
    // Each call is seen twice, going in and coming out, and a frame takes more than one write.
    calls.dedup();
    assert_eq!(calls, [libc::SYS_write, libc::SYS_fsync, libc::SYS_renameat2, libc::SYS_fsync]);
}
