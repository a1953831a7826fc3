//! Frames of processes that share memory and do everything to it, compared byte for byte with the processes, stopped at the instant
//! of the frame by a hook that runs while the tree stands still.

#[path = "../kit/mod.rs"]
#[allow(dead_code)]
mod kit;

mod compare;

use std::process::Command;

use compare::Seen;
use kit::moody::Moody;
use kit::{build, ps, rounds, Live, Stage};
use stillframe::checkpoint::{Method, Options, Session};
use stillframe::hooks::{Hook, Hooks};
use stillframe::image::{Chain, Compression};
use stillframe::store::DirStore;

/// How the program is run and framed.
#[derive(Clone, Copy)]
struct Case {
    seed: u64,
    processes: u32,
    mib: u32,
    habits: &'static str,
    method: Method,
    memory_limit: u64,
    full_every: usize,
}

const PLAIN: Case = Case { seed: 0, processes: 3, mib: 16, habits: "", method: Method::Track, memory_limit: 1 << 30, full_every: 12 };
/// The memories of the program.
const MEMORIES: usize = 4;

fn signal(group: i32, signal: i32) {
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::try_from(signal).unwrap()).unwrap();
}

fn start<'a>(stage: &'a Stage, case: &Case) -> Live<'a> {
    let mut command = Command::new(build("track_shared", "share"));
    command.args([case.seed.to_string(), case.processes.to_string(), case.mib.to_string(), case.habits.to_string()]);
    let live = stage.start(&mut command);
    stage.await_file("ready");
    live
}

fn options(case: &Case, pid: i32) -> Options {
    let stop: Hook = format!("frozen=kill -STOP -{pid}").parse().unwrap();
    Options { name: Some("share".into()), method: case.method, compression: Compression::None, memory_limit: case.memory_limit, hooks: Hooks(vec![stop]), ..Options::default() }
}

/// Takes frames and compares each; what was seen of increments.
fn run(case: &Case, frames: usize) -> Vec<Seen> {
    let stage = Stage::new();
    let mut live = start(&stage, case);
    let pid = live.pid();
    let store = Moody::new(DirStore::new(stage.store()));
    let mut session = Session::new(pid, options(case, pid)).unwrap();
    let mut increments = Vec::new();
    for number in 0..frames {
        let report = store.take(&mut session, number, case.full_every, || signal(pid, libc::SIGCONT)).unwrap_or_else(|e| panic!("seed {} frame {number}: {e}", case.seed));
        let chain = Chain::open(&store.store.path(&report.frame)).unwrap();
        let seen = compare::frame(&chain).unwrap_or_else(|e| panic!("seed {} habits {:?} frame {number} (parent {:?}): {e}", case.seed, case.habits, report.parent));
        assert_eq!(seen.memories, MEMORIES);
        signal(pid, libc::SIGCONT);
        if report.parent.is_some() {
            increments.push(seen);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        live.assert_alive();
        store.forget("share", number, case.full_every);
    }
    drop(session);
    for pid in ps::with_descendants([pid].into()) {
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        assert!(!smaps.lines().any(|line| line.starts_with("VmFlags") && line.contains(" uw")), "process {pid} is still watched");
    }
    increments
}

/// The size of everything shared, and the part of it that is always copied whole.
fn sizes(case: &Case) -> (u64, u64) {
    let each = 512 * 4096;
    (u64::from(case.mib) * (1 << 20) + 3 * each, each)
}

/// Nothing but writes, by all processes: increments hold what was written, and no more.
#[test]
fn increments_of_shared_memory_hold_what_was_written() {
    for seed in 1..=rounds(1, 20) as u64 {
        let case = Case { seed, mib: 48, habits: "pdz", ..PLAIN };
        let (all, whole) = sizes(&case);
        let increments = run(&case, rounds(15, 60));
        // The first second of a segment's life is not told from a change of who uses it.
        let own: Vec<u64> = increments.iter().map(|seen| seen.own).collect();
        assert!(own.iter().any(|&own| own < whole + all / 4), "of {all} bytes the increments hold {own:?}");
    }
}

#[test]
fn shared_memory_is_what_the_processes_share() {
    for seed in 1..=rounds(1, 40) as u64 {
        for habits in ["pdw", "pdmw", "pdfw", "pdmfwr", "pr"] {
            run(&Case { seed: 100 + seed, habits, mib: 8, ..PLAIN }, rounds(8, 25));
        }
    }
}

/// A process outside the tree writes on while the tree stands still, so nothing can be compared but that frames are taken whole.
#[test]
fn memory_shared_with_a_process_outside_is_copied_whole() {
    let case = Case { seed: 300, habits: "oz", ..PLAIN };
    let stage = Stage::new();
    let live = start(&stage, &case);
    let store = DirStore::new(stage.store());
    let mut session = Session::new(live.pid(), Options { hooks: Hooks::default(), ..options(&case, live.pid()) }).unwrap();
    session.frame(&store, false).unwrap();
    let report = session.frame(&store, true).unwrap();
    assert!(report.parent.is_some() && report.bytes > u64::from(case.mib) << 19, "{report:?}");
}

/// More than the last rounds take, and no memory to copy into.
#[test]
fn large_shared_memory_is_what_the_processes_share() {
    for seed in 1..=rounds(1, 10) as u64 {
        run(&Case { seed: 400 + seed, mib: 64, habits: "pdw", full_every: 3, method: Method::Auto, ..PLAIN }, rounds(4, 8));
        run(&Case { seed: 500 + seed, habits: "pdw", memory_limit: 0, full_every: 3, method: Method::Auto, ..PLAIN }, 6);
        run(&Case { seed: 600 + seed, habits: "pdmfw", full_every: 3, method: Method::Fork, ..PLAIN }, 4);
    }
}

/// A chain of increments brought back has what the processes had.
#[test]
fn a_restored_chain_has_the_memory() {
    for seed in 1..=rounds(1, 10) as u64 {
        let case = Case { seed: 700 + seed, habits: "pd", ..PLAIN };
        let stage = Stage::new();
        let live = start(&stage, &case);
        let pid = live.pid();
        let store = DirStore::new(stage.store());
        let mut session = Session::new(pid, options(&case, pid)).unwrap();
        let mut last = None;
        for number in 0..4 {
            last = Some(session.frame(&store, number > 0).unwrap());
            signal(pid, libc::SIGCONT);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        drop(session);
        live.kill();
        let frame = last.unwrap().frame;
        let args = ["--hook", &format!("restored=kill -STOP -{pid}")];
        assert_eq!(stage.restore(&frame.to_string(), &args), pid);
        compare::frame(&Chain::open(&store.path(&frame)).unwrap()).unwrap();
    }
}
