//! `restore --lazy`: a program that uses its memory in every way while that is still on its way, and pagers that are killed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[allow(dead_code)]
#[path = "../kit/mod.rs"]
mod kit;

use kit::{build, eventually, ps, rounds, stillframe, Stage};

const MIB: &str = "256";

/// The tests look at all pagers of the machine: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pagers and guardians of the program under test, by their names.
fn pagers() -> Vec<(i32, String)> {
    let program = fs::canonicalize(env!("CARGO_BIN_EXE_stillframe")).unwrap();
    let named = |pid: i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
        let ours = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        (ours && name.starts_with("frame-") && ps::alive(pid)).then_some((pid, name))
    };
    ps::all().into_iter().filter_map(named).collect()
}

/// Whether any mapping of a process is watched by a userfaultfd.
fn is_watched(pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    text.lines().any(|line| line.starts_with("VmFlags:") && line.split_whitespace().any(|flag| flag == "um"))
}

/// A frame of a program that is ready to go, and no such program any more.
fn frame_of(stage: &Stage, program: &Path) -> String {
    let live = stage.start(Command::new(program).arg(stage.work("")).arg(MIB));
    stage.await_file("ready");
    let frame = stage.checkpoint(live.pid(), &["--then", "kill"]).frame;
    live.kill();
    frame
}

fn assert_nothing_stays(pid: i32) {
    eventually("the end of the pager", || pagers().is_empty().then_some(()));
    assert!(!is_watched(pid), "memory of {pid} is still watched");
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(children.trim(), "", "the instance has children that it did not make");
    let descriptors: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect();
    assert!(descriptors.iter().all(|link| !link.to_string_lossy().contains("userfaultfd")), "{descriptors:?}");
}

#[test]
fn memory_is_right_however_it_is_used_on_its_way() {
    let _alone = alone();
    let program = build("lazy", "churn");
    for round in 0..rounds(2, 30) {
        let stage = Stage::new();
        let frame = frame_of(&stage, &program);
        stage.write("go", "1");
        let pid = stage.restore(&frame, if round % 2 == 0 { &["--lazy"] } else { &["--lazy", "--isolate"] });
        eventually("the program to be done", || {
            stage.assert_unharmed();
            assert!(ps::alive(pid), "the instance died\n{}", stage.log());
            stage.read("done")
        });
        assert_nothing_stays(pid);
        stage.kill_all();
    }
}

/// How a pager and its guardian end.
fn strike(round: usize) -> Vec<&'static str> {
    let found = pagers();
    let names = match round % 3 {
        0 => vec!["frame-pager"],
        1 => vec!["frame-pager", "frame-guardian"],
        _ => vec!["frame-guardian", "frame-pager"],
    };
    for name in &names {
        for (pid, _) in found.iter().filter(|(_, known)| known == name) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    names
}

#[test]
fn an_instance_whose_pager_is_killed_dies_and_never_sees_wrong_data() {
    let _alone = alone();
    let program = build("lazy", "churn");
    let stage = Stage::new();
    let frame = frame_of(&stage, &program);
    let mut killed = 0;
    for round in 0..rounds(6, 100) {
        stage.write("go", "1");
        let pid = stage.restore(&frame, &["--lazy"]);
        std::thread::sleep(Duration::from_micros((round as u64 * 7919) % 40_000));
        let left = pagers().iter().any(|(_, name)| name == "frame-pager");
        let how = strike(round);
        let deadline = Instant::now() + Duration::from_secs(10);
        while left && ps::alive(pid) && !pagers().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        stage.assert_unharmed();
        if ps::alive(pid) {
            // The pager had done all its work before it was struck.
            assert!(!is_watched(pid), "{how:?} is dead, yet {pid} lives and waits for pages");
        } else {
            killed += 1;
        }
        stage.kill_all();
        eventually("the end of all pagers", || pagers().is_empty().then_some(()));
        stage.assert_unharmed();
        let _ = fs::remove_file(stage.work("done"));
    }
    assert!(killed >= rounds(2, 30), "only {killed} instances were killed on their way");
}

#[test]
fn a_damaged_block_ends_the_instance_in_words() {
    let _alone = alone();
    let program = build("lazy", "churn");
    let stage = Stage::new();
    let frame = frame_of(&stage, &program);
    let file = stage.frame_file(&frame);
    let mut bytes = fs::read(&file).unwrap();
    // In the first third lie the blocks that come last.
    let at = bytes.len() / 3;
    bytes[at] ^= 0x40;
    fs::write(&file, bytes).unwrap();
    let log = stage.work("words");
    let mut command = stillframe();
    command.args(["restore", &frame, "--lazy", "--detach", "--store"]).arg(stage.store());
    command.stdout(fs::File::create(stage.work("pid")).unwrap()).stderr(fs::File::create(&log).unwrap());
    assert!(command.status().unwrap().success(), "{}", fs::read_to_string(&log).unwrap());
    let pid: i32 = stage.read("pid").unwrap().trim().parse().unwrap();
    eventually("the end of the instance", || (!ps::alive(pid)).then_some(()));
    let words = eventually("the guardian's last word", || stage.read("words").filter(|words| words.contains("killed the second instance")));
    assert!(words.contains("block") && words.contains("damaged") && words.contains(&pid.to_string()), "{words}");
    assert!(words.lines().all(|line| line.starts_with("stillframe: ")), "{words}");
}

#[test]
fn a_checkpoint_waits_for_the_last_page() {
    let _alone = alone();
    let program = build("lazy", "churn");
    let stage = Stage::new();
    let frame = frame_of(&stage, &program);
    let pid = stage.restore(&frame, &["--lazy"]);
    let second = stage.checkpoint(pid, &["--then", "kill"]).frame;
    assert!(pagers().is_empty(), "the frame was taken of half an instance");
    eventually("the end of the instance", || (!ps::alive(pid)).then_some(()));
    stage.write("go", "1");
    stage.restore(&second, &[]);
    eventually("the program to be done", || {
        stage.assert_unharmed();
        stage.read("done")
    });
}
