//! The figures that the project is measured by, in one table, each with its bar.
//!
//! `cargo bench --bench figures [-- GIB] [GROUP...]`, as root, on a machine that does nothing else. GIB is the large size, 8 if
//! it fits; of the groups pause, threads, throughput, protection, increment and restores all are measured, or those named.

#[path = "../../tests/kit/mod.rs"]
#[allow(dead_code)] // only the harness for live processes is used
mod kit;

#[path = "../pause/criu.rs"]
#[allow(dead_code)]
mod criu;
#[path = "../pause/measure.rs"]
#[allow(dead_code)]
mod measure;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kit::{build, eventually, ps, stillframe, Stage};
use measure::{bare_fork, gap_during, middle, millis, start_at, state, time_to_loop, Content, Quiet};

const ROUNDS: usize = 3;

fn main() {
    // Cargo passes "--bench" along.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let large = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(8u64);
    let named: Vec<&String> = args.iter().filter(|arg| arg.parse::<u64>().is_err()).collect();
    println!("# medians of {ROUNDS}; bar in brackets; {}", if criu::available() { "criu is here: see the bench `pause`" } else { "no working criu on PATH" });
    let groups: [(&str, &dyn Fn()); 6] = [
        ("pause", &|| [1, 4, large].iter().for_each(|&gib| [4_000, 100_000].iter().for_each(|&rate| pause(gib, rate)))),
        ("threads", &threads_and_descriptors),
        ("throughput", &|| throughput(2)),
        ("protection", &|| protection(4)),
        ("increment", &|| increment(4)),
        ("restores", &|| restores(large)),
    ];
    assert!(named.iter().all(|name| groups.iter().any(|(group, _)| group == name)), "no such group of rows: {named:?}");
    groups.iter().filter(|(group, _)| named.is_empty() || named.iter().any(|name| name == group)).for_each(|(_, measure)| measure());
}

fn row(what: &str, value: String, bar: &str) {
    println!("{what:<64} {value:>40}   [{bar}]");
}

/// Keeps the newest frame only: a small disk has to do.
fn forget(stage: &Stage) {
    let mut rm = stillframe();
    rm.args(["rm", "frame", "--all", "--store"]).arg(stage.store()).stdout(Stdio::null());
    assert!(rm.status().unwrap().success());
}

fn pause(gib: u64, rate: u64) {
    let stage = Stage::new();
    let _quiet = Quiet::mount(&stage);
    let live = start_at(&stage, gib << 10, Content::Random, rate);
    let fork = bare_fork(&stage).pause_ms.unwrap_or_default();
    let (mut pauses, mut gaps, mut methods) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (gap, report) = gap_during(&stage, || stage.checkpoint(live.pid(), &["--compress", "none"]));
        pauses.push(report.pause_ns as f64 / 1e6);
        gaps.push(gap);
        methods.push(report.method);
        forget(&stage);
    }
    let bar = if rate == 4_000 { "<= 5 ms at 8 GiB" } else { "<= 12 ms at 8 GiB" };
    let value = format!("{:.1} ms (gap {:.1}, bare fork {fork:.0}, {})", middle(pauses), middle(gaps), methods.join(" "));
    row(&format!("pause, {gib} GiB, {rate} random pages written a second"), value, bar);
}

fn threads_and_descriptors() {
    let stage = Stage::new();
    let _quiet = Quiet::mount(&stage);
    let live = stage.start(Command::new(build("../benches/figures", "many")).args(["100", "1000", "100"]));
    eventually("the memory to be filled", || state(&stage));
    let mut pauses = Vec::new();
    for _ in 0..ROUNDS {
        pauses.push(stage.checkpoint(live.pid(), &[]).pause_ns as f64 / 1e6);
        forget(&stage);
    }
    row("pause, 100 threads, 1,000 descriptors, 100 MiB", format!("{:.1} ms", middle(pauses)), "<= 20 ms");
}

/// Loops a second of the program while `body` runs, or for two seconds.
fn speed<T>(stage: &Stage, body: impl FnOnce() -> T) -> f64 {
    let from = (state(stage).unwrap().loops, Instant::now());
    drop(body());
    let to = (state(stage).unwrap().loops, Instant::now());
    (to.0 - from.0) as f64 / (to.1 - from.1).as_secs_f64()
}

fn rest() {
    std::thread::sleep(Duration::from_secs(2));
}

/// The program has one processor, the transfer another: what it loses is what the frame takes from it.
fn throughput(gib: u64) {
    let stage = Stage::new();
    let _quiet = Quiet::mount(&stage);
    let live = start_at(&stage, gib << 10, Content::Random, 100_000);
    let losses = (0..ROUNDS).map(|_| {
        let alone = speed(&stage, rest);
        let framed = speed(&stage, || stage.checkpoint(live.pid(), &["--compress", "none"]));
        forget(&stage);
        100.0 * (1.0 - framed / alone)
    });
    let lost = middle(losses.collect());
    row(&format!("throughput lost while a full frame of {gib} GiB is taken"), format!("{lost:.1} %"), "<= 15 %");
}

fn protection(gib: u64) {
    let stage = Stage::new();
    let _quiet = Quiet::mount(&stage);
    let live = start_at(&stage, gib << 10, Content::Random, 5_000);
    let alone = speed(&stage, || std::thread::sleep(Duration::from_secs(10)));
    let mut command = stillframe();
    command.args(["protect", &live.pid().to_string(), "--every", "1s", "--keep", "2", "--quiet", "--name", "frame", "--store"]).arg(stage.store());
    let mut protector = command.spawn().unwrap();
    // The first frame is a full one, which is not what is measured.
    eventually("the first increments", || stage.stored().iter().any(|path| path.ends_with("00000003.frame")).then_some(()));
    let protected = speed(&stage, || std::thread::sleep(Duration::from_secs(10)));
    ps::signal(protector.id() as i32, nix::sys::signal::Signal::SIGTERM);
    protector.wait().unwrap();
    row(&format!("cost of protect --every 1s, 5,000 pages a second, {gib} GiB"), format!("{:.1} %", 100.0 * (1.0 - protected / alone)), "<= 3 %");
}

fn increment(gib: u64) {
    let stage = Stage::new();
    let _quiet = Quiet::mount(&stage);
    // One page in a hundred between two frames.
    let live = start_at(&stage, gib << 10, Content::Random, gib * 262_144 / 100);
    let options = stillframe::checkpoint::Options { name: Some("frame".into()), ..Default::default() };
    let mut session = stillframe::checkpoint::Session::new(live.pid(), options).unwrap();
    let store = stillframe::store::DirStore::new(stage.store());
    session.frame(&store, false).unwrap();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        std::thread::sleep(Duration::from_secs(1));
        times.push(session.frame(&store, true).unwrap().durable_ns as f64 / 1e6);
    }
    row(&format!("an increment after 1 % of {gib} GiB was written, durable in"), format!("{:.0} ms", middle(times)), "<= 150 ms");
}

fn restores(gib: u64) {
    let stage = Stage::new();
    let _quiet = Quiet::mount(&stage);
    let live = start_at(&stage, gib << 10, Content::Random, 4_000);
    let frame = stage.checkpoint(live.pid(), &["--compress", "none"]).frame;
    live.kill();
    let again = |args: &[&str]| {
        let (mut drained, mut root) = (None, 0);
        let time = time_to_loop(&stage, || {
            root = stage.restore(&frame, args);
            root
        });
        if args.contains(&"--lazy") {
            let begun = Instant::now();
            eventually("the drain", || (!stage.members(&[]).iter().any(|&pid| watched(pid))).then_some(()));
            drained = Some(time + millis(begun.elapsed()));
        }
        stage.kill_all();
        // The kernel takes more than a second to end so large a process, which is not the next restore's time.
        eventually("its id to be free", || (!ps::exists(root)).then_some(()));
        (time, drained.unwrap_or_default())
    };
    // The frame was written past the page cache: the first restore reads it from the disk.
    again(&[]);
    let eager = middle((0..ROUNDS).map(|_| again(&[]).0).collect());
    row(&format!("eager restore of {gib} GiB, warm cache"), format!("{:.2} s", eager / 1e3), "<= 3.3 s at 8 GiB (CRIU: 6.6 s)");
    let lazy: Vec<(f64, f64)> = (0..ROUNDS).map(|_| again(&["--lazy"])).collect();
    let (first, all) = (middle(lazy.iter().map(|times| times.0).collect()), middle(lazy.iter().map(|times| times.1).collect()));
    row(&format!("lazy restore of {gib} GiB: loop runs again / all pages there"), format!("{first:.0} ms / {:.2} s", all / 1e3), "<= 20 ms / 8 s");
}

/// Whether pages of the process are still to come.
fn watched(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/smaps")).is_ok_and(|text| text.lines().any(|line| line.starts_with("VmFlags") && line.contains(" um")))
}
