//! Kills a writer at each of its system calls in turn: the store must come out whole every time.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use stillframe::image::{read_header, Compression, FrameId, Header};
use stillframe::store::{compact, DirStore, FrameRef, Store};
use stillframe::sys::ptrace::{self, Event};
use stillframe::Result;

/// Tells the test binary that it is the writer to be killed, and in which store.
const STORE: &str = "STILLFRAME_TEST_CRASH_STORE";
/// Tells it what to do.
const DEED: &str = "STILLFRAME_TEST_CRASH_DEED";
const READY: &str = "ready to be killed";

/// What the writer does before it is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Deed {
    Take,
    /// Remove the newest frame.
    Remove,
    /// Make frame 2, an increment, a full one.
    Compact,
    /// Remove all frames, of which one builds upon the other.
    Clear,
}

const LEN: u64 = 300_000;

fn take(store: &DirStore) -> Result<FrameRef> {
    take_upon(store, None)
}

fn take_upon(store: &DirStore, parent: Option<FrameId>) -> Result<FrameRef> {
    let pending = store.begin("web")?;
    let mut writer = pending.writer(&Header::new(parent))?;
    match parent {
        Some(_) => {
            writer.parent(0, 0, LEN / 2, 0)?;
            writer.put(0, LEN / 2, &[8; LEN as usize / 2], Compression::None)?;
        }
        None => writer.put(0, 0, &[7; LEN as usize], Compression::None)?,
    }
    let written = writer.finish(b"{}")?;
    store.commit(pending, &written)
}

/// The writer: waits until it is traced, then does its one deed.
fn writer(store: &Path) {
    let store = DirStore::new(store);
    // The harness runs a test in a thread of its own, so that is the one to trace.
    println!("{READY} {}", nix::unistd::gettid());
    std::io::stdin().read_exact(&mut [0]).unwrap();
    let deed = env::var(DEED).unwrap();
    match deed.as_str() {
        "Remove" => store.remove(&store.newest("web").unwrap()).unwrap(),
        "Compact" => drop(compact(&store.resolve("web@2").unwrap().path, Compression::None, &mut |_, _| {}).unwrap().unwrap()),
        "Clear" => store.remove_all(&store.list(Some("web")).unwrap()).unwrap(),
        _ => drop(take(&store).unwrap()),
    }
    // Skips whatever the test harness would still do, which is none of our steps.
    std::process::exit(0);
}

fn spawn(store: &Path, test: &str, deed: Deed) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--test-threads=1", "--nocapture"]).env(STORE, store).env(DEED, format!("{deed:?}"));
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
fn kill_after(steps: usize, store: &Path, test: &str, deed: Deed) -> bool {
    watch(steps, store, test, deed, |_| {})
}

/// The same, and shows `see` the thread at each step.
fn watch(steps: usize, store: &Path, test: &str, deed: Deed, mut see: impl FnMut(libc::pid_t)) -> bool {
    let mut child = spawn(store, test, deed);
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
fn replay(test: &str, deed: Deed, done: impl Fn(u64) -> Vec<u64>) {
    if let Some(store) = env::var_os(STORE) {
        return writer(Path::new(&store));
    }
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::new(dir.path());
    take(&store).unwrap();
    let mut last = take(&store).unwrap().seq();
    let (mut steps, mut finished) = (0, 0);
    while kill_after(steps, dir.path(), test, deed) {
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
    replay("killed_commit_leaves_the_store_whole", Deed::Take, |last| vec![last - 1, last, last + 1]);
}

#[test]
fn killed_removal_leaves_the_store_whole() {
    replay("killed_removal_leaves_the_store_whole", Deed::Remove, |last| vec![last - 1]);
}

/// A store with frames 1 to 3, each upon the one before.
fn chained() -> (tempfile::TempDir, DirStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::new(dir.path());
    let mut parent = None;
    for _ in 0..3 {
        let frame = take_upon(&store, parent).unwrap();
        parent = Some(read_header(&store.path(&frame)).unwrap().id);
    }
    (dir, store)
}

fn content(store: &DirStore, seq: u64) -> Vec<u8> {
    let mut bytes = vec![0; LEN as usize];
    store.open(&FrameRef::new("web", seq).unwrap()).unwrap().read_at(0, 0, &mut bytes).unwrap();
    bytes
}

/// Kills the writer at every step of a deed on a chain; `check` looks at what it left, and says whether the deed was done.
fn replay_on_chain(test: &str, deed: Deed, check: impl Fn(&DirStore) -> bool) {
    if let Some(store) = env::var_os(STORE) {
        return writer(Path::new(&store));
    }
    let (mut steps, mut done) = (0, 0);
    loop {
        let (dir, store) = chained();
        let killed = kill_after(steps, dir.path(), test, deed);
        done += usize::from(check(&store));
        drop(store.begin("web").unwrap());
        assert_eq!(partials(&store), 0, "after {steps} steps");
        if !killed {
            break;
        }
        steps += 1;
    }
    assert!(steps > 20 && (1..steps).contains(&done), "killed {steps} times, {done} of them too late");
}

#[test]
fn killed_compaction_leaves_the_old_frame_or_the_new() {
    replay_on_chain("killed_compaction_leaves_the_old_frame_or_the_new", Deed::Compact, |store| {
        assert_eq!(assert_whole(store), [1, 2, 3]);
        for seq in 1..=3 {
            let (old, new) = ([7; LEN as usize / 2], [if seq > 1 { 8 } else { 7 }; LEN as usize / 2]);
            assert!(content(store, seq) == [old, new].concat(), "frame {seq}");
        }
        read_header(&store.resolve("web@2").unwrap().path).unwrap().parent.is_none()
    });
}

#[test]
fn killed_removal_of_a_chain_leaves_no_child_without_its_parent() {
    replay_on_chain("killed_removal_of_a_chain_leaves_no_child_without_its_parent", Deed::Clear, |store| {
        let left = assert_whole(store);
        assert!(left == (1..=left.len() as u64).collect::<Vec<_>>(), "{left:?}");
        left.is_empty()
    });
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
    assert!(!watch(usize::MAX, dir.path(), test, Deed::Take, see), "the writer runs to its end");
    calls.retain(|call| [libc::SYS_pwrite64, libc::SYS_fsync, libc::SYS_renameat2].contains(call));
    // Each call is seen twice, going in and coming out, and a frame takes more than one write.
    calls.dedup();
    assert_eq!(calls, [libc::SYS_pwrite64, libc::SYS_fsync, libc::SYS_renameat2, libc::SYS_fsync]);
}
