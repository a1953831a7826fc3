//! Frames of a program that does everything to its memory, compared byte for byte with the program itself, stopped at the
//! instant of the frame.
//!
//! The program is stopped by a hook that runs while the tree stands still: it cannot run another instruction after the frame,
//! and so holds what the frame must hold.

#[path = "../kit/mod.rs"]
#[allow(dead_code)]
mod kit;

mod compare;

use std::process::Command;

use kit::moody::Moody;
use kit::{build, rounds, Stage};
use stillframe::checkpoint::{Method, Options, Session};
use stillframe::hooks::{Hook, Hooks};
use stillframe::image::{Chain, Compression};
use stillframe::store::DirStore;

/// How the program is run and framed.
struct Case {
    seed: u64,
    threads: u32,
    mib: u32,
    children: bool,
    method: Method,
    memory_limit: u64,
    /// One frame in so many is full.
    full_every: usize,
}

/// Signals all processes of a group; there is one as long as its leader stands.
fn signal(group: i32, signal: i32) {
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::try_from(signal).unwrap()).unwrap();
}

fn run(case: &Case, frames: usize) -> Vec<&'static str> {
    let stage = Stage::new();
    let mut command = Command::new(build("track", "churn"));
    command.args([case.seed.to_string(), case.threads.to_string(), case.mib.to_string(), u32::from(case.children).to_string()]);
    let mut live = stage.start(&mut command);
    stage.await_file("ready");
    let pid = live.pid();
    let store = Moody::new(DirStore::new(stage.store()));
    let stop: Hook = format!("frozen=kill -STOP -{pid}").parse().unwrap();
    let options = Options { name: Some("churn".into()), method: case.method, compression: Compression::None, memory_limit: case.memory_limit, hooks: Hooks(vec![stop]), ..Options::default() };
    let mut session = Session::new(pid, options).unwrap();
    let mut methods = Vec::new();
    for number in 0..frames {
        let report = store.take(&mut session, number, case.full_every, || signal(pid, libc::SIGCONT)).unwrap_or_else(|e| panic!("seed {} frame {number}: {e}", case.seed));
        let chain = Chain::open(&store.store.path(&report.frame)).unwrap();
        compare::frame(&chain).unwrap_or_else(|e| panic!("seed {} frame {number} ({}, parent {:?}): {e}", case.seed, report.method, report.parent));
        methods.push(report.method);
        signal(pid, libc::SIGCONT);
        // Time to do something; the first step of a busy program comes at once.
        std::thread::sleep(std::time::Duration::from_millis(10));
        live.assert_alive();
        store.forget("churn", number, case.full_every);
    }
    drop(session);
    compare::assert_unwatched(pid);
    methods
}

fn case(seed: u64) -> Case {
    Case { seed, threads: 2, mib: 16, children: false, method: Method::Track, memory_limit: 1 << 30, full_every: 12 }
}

#[test]
fn tracked_frames_hold_what_the_program_holds() {
    for seed in 1..=rounds(1, 40) as u64 {
        assert!(run(&case(seed), 25).iter().all(|method| *method == "track"));
    }
}

/// More than the last rounds take: pages go straight into the frame, round by round.
#[test]
fn large_rounds_hold_what_the_program_holds() {
    for seed in 1..=rounds(1, 10) as u64 {
        run(&Case { mib: 96, threads: 3, full_every: 3, method: Method::Auto, ..case(100 + seed) }, 6);
    }
}

/// Without memory for copies every frame needs a twin at the end.
#[test]
fn frames_that_end_in_a_fork_hold_what_the_program_holds() {
    for seed in 1..=rounds(1, 20) as u64 {
        let methods = run(&Case { memory_limit: 0, method: Method::Auto, ..case(200 + seed) }, 15);
        assert!(methods.contains(&"track+fork"), "{methods:?}");
    }
}

#[test]
fn forked_frames_hold_what_the_program_holds() {
    for seed in 1..=rounds(1, 10) as u64 {
        assert!(run(&Case { method: Method::Fork, ..case(300 + seed) }, 8).iter().all(|method| *method == "fork"));
    }
}

/// Children come and go between frames and within them.
#[test]
fn trees_hold_what_the_programs_hold() {
    for seed in 1..=rounds(1, 20) as u64 {
        run(&Case { children: true, method: Method::Auto, ..case(400 + seed) }, 15);
    }
}
