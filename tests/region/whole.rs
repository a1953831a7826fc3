//! Whole processes, from inside: of a program with a session, and of another program with progress and cancellation.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use stillframe::error::Kind;
use stillframe::inside::{checkpoint_pid, checkpoint_self, restore, Callbacks, Options, Outcome, Progress};
use stillframe::region::{Level, Snapshot};
use stillframe::store::{DirStore, Store};

use super::{alone, builder, fill, holds, LONG};

const COUNT: usize = 1 << 18;
/// What the ballast holds, in bytes.
const BALLAST: usize = 192 << 20;

fn dir_of_test() -> PathBuf {
    Path::new(&std::env::var_os("STILLFRAME_TEST_STORE").expect("started by another test")).parent().unwrap().to_owned()
}

fn options(dir: &Path, name: &str, arguments: &[&str]) -> Options {
    Options { store: Some(dir.join("frames")), name: Some(name.to_owned()), arguments: arguments.iter().map(|&argument| argument.to_owned()).collect() }
}

fn await_file(path: &Path) -> String {
    let give_up = Instant::now() + LONG;
    loop {
        match fs::read_to_string(path) {
            Ok(text) => return text,
            Err(e) => assert!(Instant::now() < give_up, "{}: {e}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn say(path: &Path, text: &str) {
    fs::write(path.with_extension("new"), text).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
}

fn end_with(mut child: Child, dir: &Path) {
    let _ = child.kill();
    let _ = child.wait();
    for pid in marked(dir) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Processes that carry the directory of a test in their environment or their arguments, but for this one.
fn marked(dir: &Path) -> Vec<i32> {
    let mark = dir.as_os_str().as_encoded_bytes();
    let carries = |pid: i32, file: &str| fs::read(format!("/proc/{pid}/{file}")).is_ok_and(|bytes| bytes.windows(mark.len()).any(|window| window == mark));
    let ids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|&pid| pid != std::process::id() as i32 && (carries(pid, "environ") || carries(pid, "cmdline"))).collect()
}

#[test]
fn both_instances_of_a_program_go_on_with_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let log = fs::File::create(dir.path().join("log")).unwrap();
    let mut command = alone::program("whole::takes_a_frame_of_itself", false, dir.path());
    let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let status = child.wait().unwrap();
    let said = fs::read_to_string(dir.path().join("log")).unwrap();
    end_with(child, dir.path());
    assert!(status.success() && said.contains("1 passed"), "{status}: {said}");
}

/// The first instance brings the second one back and outlives its first words; the second one has the last.
#[test]
#[ignore = "a program of the test above"]
fn takes_a_frame_of_itself() {
    let dir = dir_of_test();
    let (held, free, last) = (dir.join("held"), dir.join("free"), dir.join("last"));
    let session = builder(&dir.join("store")).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    session.snapshot(&1).unwrap().wait(Level::Stored, LONG).unwrap();
    fill(&mut region, 2);
    // In flight when the frame is asked for.
    session.snapshot(&2).unwrap();
    match checkpoint_self(&options(&dir, "self", &["--external", "close"]), &mut Callbacks::default()).unwrap() {
        Outcome::Saved(saved) => {
            // What was in flight is stored, and the session is as it was.
            assert_eq!(Snapshot::newest(dir.join("store"), "test").unwrap().state::<u64>().unwrap(), Some(2));
            region[7] = 7;
            let full = session.snapshot(&3).unwrap().wait(Level::Verified, LONG).unwrap();
            region[7] = 8;
            let increment = session.snapshot(&4).unwrap().wait(Level::Verified, LONG).unwrap();
            assert!(full.parent.is_none() && increment.parent.is_some(), "{full:?} {increment:?}");
            restore(&saved.frame, &options(&dir, "self", &["--isolate"]), &mut Callbacks::default()).unwrap();
            let word = await_file(&held);
            assert!(word.contains("Held") && word.contains("process"), "{word}");
            drop(region);
            session.close().unwrap();
            say(&free, "");
            assert_eq!(await_file(&last), "5");
            assert!(holds(&Snapshot::newest(dir.join("store"), "test").unwrap().read::<u64>("numbers").unwrap(), 2));
        }
        Outcome::Restored(_) => {
            let word = session.snapshot(&9).map_or_else(|e| format!("{:?}: {e}", e.kind()), |_| "taken".to_owned());
            say(&held, &word);
            await_file(&free);
            let info = session.snapshot(&9).unwrap().wait(Level::Verified, LONG).unwrap();
            say(&last, &info.frame.unwrap().seq().to_string());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "a program of the tests below"]
fn is_ballast() {
    let mut numbers = vec![0u64; BALLAST / 8];
    fill(&mut numbers, 5);
    say(&dir_of_test().join("ready"), "");
    std::thread::sleep(LONG * 10);
    assert!(holds(&numbers, 5));
}

fn ballast(dir: &Path) -> Child {
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut command = Command::new("setsid");
    let program = alone::program("whole::is_ballast", false, dir);
    command.arg(program.get_program()).args(program.get_args());
    let child = command.envs(program.get_envs().filter_map(|(key, value)| Some((key, value?)))).current_dir("/").stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    await_file(&dir.join("ready"));
    child
}

/// Callbacks that note what they are told, and go on as long as `go_on` says.
fn noting<'a>(told: &'a RefCell<Vec<Progress>>, go_on: fn(&Progress) -> bool) -> Callbacks<'a> {
    let note = move |progress: &Progress| {
        told.borrow_mut().push(*progress);
        go_on(progress)
    };
    Callbacks { progress: Some(Box::new(note)), ..Callbacks::default() }
}

fn is_steady(told: &[Progress]) -> bool {
    told.len() > 3 && told.windows(2).all(|pair| pair[0].done <= pair[1].done && pair[0].elapsed <= pair[1].elapsed) && told.iter().all(|at| at.done <= at.total)
}

/// In one process of its own, where the command is found by the environment.
#[test]
fn progress_is_told_and_calling_off_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let child = ballast(dir.path());
    let out = alone::program("whole::follows", false, dir.path()).env("STILLFRAME_TEST_TARGET", child.id().to_string()).output().unwrap();
    end_with(child, dir.path());
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "a program of the test above"]
fn follows() {
    let (dir, pid) = (dir_of_test(), std::env::var("STILLFRAME_TEST_TARGET").unwrap().parse().unwrap());
    let slowly = options(&dir, "ballast", &["--external", "close", "--compress", "none", "--rate-limit", "200M"]);
    let told = RefCell::new(Vec::new());

    let cancelled = checkpoint_pid(pid, &slowly, &mut noting(&told, |at| at.done == 0)).unwrap_err();
    assert_eq!(cancelled.kind(), Kind::Cancelled);
    assert!(told.borrow().last().unwrap().total >= BALLAST as u64, "{told:?}");
    assert!(DirStore::new(dir.join("frames")).list(Some("ballast")).is_ok_and(|frames| frames.is_empty()));

    told.borrow_mut().clear();
    let saved = checkpoint_pid(pid, &slowly, &mut noting(&told, |_| true)).unwrap();
    assert!(is_steady(&told.borrow()) && saved.bytes > BALLAST as u64, "{told:?}");
    let end = *told.borrow().last().unwrap();
    assert!(end.done > BALLAST as u64 / 2 && end.written > BALLAST as u64 / 2, "{end:?}");

    told.borrow_mut().clear();
    let before = marked(&dir);
    let apart = options(&dir, "", &["--isolate"]);
    let cancelled = restore(&saved.frame, &apart, &mut noting(&told, |at| at.total == 0)).unwrap_err();
    assert_eq!(cancelled.kind(), Kind::Cancelled);
    let give_up = Instant::now() + LONG;
    while marked(&dir).iter().any(|pid| !before.contains(pid)) {
        assert!(Instant::now() < give_up, "left behind: {:?}, not only {before:?}", marked(&dir));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(told.borrow().last().unwrap().total >= BALLAST as u64, "{told:?}");

    told.borrow_mut().clear();
    let second = restore(&saved.frame, &apart, &mut noting(&told, |_| true)).unwrap();
    assert!(Path::new(&format!("/proc/{second}")).exists() && told.borrow().iter().all(|at| at.done <= at.total && at.written == 0));
}
