//! One program, measured by every method.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{mount, umount, MsFlags};

use crate::kit::{build, eventually, ps, Live, Stage};
use crate::{criu, ROUNDS};

/// What the memory holds.
#[derive(Clone, Copy)]
pub enum Content {
    /// Incompressible.
    Random,
    /// Compresses well.
    Patterned,
}

impl Content {
    fn argument(self) -> &'static str {
        match self {
            Content::Random => "random",
            Content::Patterned => "pattern",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Content::Random => "incompressible",
            Content::Patterned => "compressible",
        }
    }
}

/// A line of the table. `gap_ms` is what the program itself saw.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub struct Row {
    pub method: &'static str,
    pub mib: u64,
    pub content: &'static str,
    pub pause_ms: Option<f64>,
    pub gap_ms: f64,
    pub durable_ms: Option<f64>,
    pub stored_mib: Option<f64>,
    pub restore_ms: Option<f64>,
}

/// What the program reports about itself.
pub struct State {
    pub loops: u64,
    gap_ns: u64,
    fork_ns: u64,
}

pub fn state(stage: &Stage) -> Option<State> {
    let text = stage.read("state")?;
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    Some(State { loops: numbers.next()??, gap_ns: numbers.next()??, fork_ns: numbers.next()?? })
}

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Waits for two reports more, so that one of them is whole and new.
fn fresh(stage: &Stage) -> State {
    let from = state(stage).map_or(0, |state| state.loops);
    let next = eventually("a report", || state(stage).filter(|state| state.loops > from)).loops;
    eventually("a report", || state(stage).filter(|state| state.loops > next))
}

fn reset(stage: &Stage) {
    stage.write("reset", "");
    eventually("the reset", || (!stage.work("reset").exists()).then_some(()));
    fresh(stage);
}

/// The longest gap in the program's loop while `body` runs.
pub fn gap_during<T>(stage: &Stage, body: impl FnOnce() -> T) -> (f64, T) {
    reset(stage);
    let value = body();
    (fresh(stage).gap_ns as f64 / 1e6, value)
}

/// From the call until the loop of the restored program has gone round.
pub fn time_to_loop(stage: &Stage, restore: impl FnOnce() -> i32) -> f64 {
    fs::remove_file(stage.work("state")).unwrap();
    let begun = Instant::now();
    let pid = restore();
    while state(stage).is_none() {
        assert!(ps::alive(pid), "the restored program died");
        std::thread::sleep(Duration::from_micros(200));
    }
    millis(begun.elapsed())
}

/// Memory in place of the directory that the program reports to: the store's writes to the disk must not hold up its reports.
pub struct Quiet(PathBuf);

impl Quiet {
    pub fn mount(stage: &Stage) -> Quiet {
        let work = stage.work("");
        mount(Some("tmpfs"), &work, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).expect("a tmpfs; this benchmark needs root");
        Quiet(work)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        umount(&self.0).unwrap();
    }
}

fn start(stage: &Stage, mib: u64, content: Content) -> Live<'_> {
    start_at(stage, mib, content, 4000)
}

/// Starts the program; it rewrites so many pages a second.
pub fn start_at(stage: &Stage, mib: u64, content: Content, rate: u64) -> Live<'_> {
    let live = stage.start(Command::new(build("../benches/pause", "loop")).args([&mib.to_string(), content.argument(), &rate.to_string()]));
    eventually("the memory to be filled", || state(stage));
    live
}

pub fn bare_fork(stage: &Stage) -> Row {
    stage.write("fork", "");
    let state = eventually("the fork", || state(stage).filter(|state| state.fork_ns > 0));
    let (pause_ms, gap_ms) = (Some(state.fork_ns as f64 / 1e6), fresh(stage).gap_ns as f64 / 1e6);
    // The child has to be gone before the next measurement.
    std::thread::sleep(Duration::from_millis(1200));
    reset(stage);
    Row { method: "bare fork", pause_ms, gap_ms, ..Row::default() }
}

pub fn stillframe(stage: &Stage, pid: i32) -> (Row, String) {
    let (gap_ms, report) = gap_during(stage, || stage.checkpoint(pid, &[]));
    let row = Row {
        method: "stillframe",
        pause_ms: Some(report.pause_ns as f64 / 1e6),
        gap_ms,
        durable_ms: Some(report.durable_ns as f64 / 1e6),
        stored_mib: Some(report.bytes as f64 / f64::from(1 << 20)),
        ..Row::default()
    };
    (row, report.frame)
}

/// Every method against one running program, then the restores.
pub fn all(mib: u64, content: Content, with_criu: bool) -> Vec<Row> {
    let stage = Stage::new();
    let _quiet = Quiet::mount(&stage);
    let live = start(&stage, mib, content);
    let mut rows = vec![median((0..ROUNDS).map(|_| bare_fork(&stage)).collect())];
    let mut frame = String::new();
    let taken: Vec<Row> = (0..ROUNDS).map(|_| take_and_forget(&stage, live.pid(), &mut frame)).collect();
    let dumped = with_criu.then(|| criu::dump(&stage, live.pid(), ROUNDS));
    live.kill();
    rows.push(Row { restore_ms: Some(restores(&stage, || stage.restore(&frame, &[]))), ..median(taken) });
    if let Some((dumps, images)) = dumped {
        rows.push(Row { restore_ms: Some(restores(&stage, || criu::restore(&images))), ..median(dumps) });
    }
    rows.iter_mut().for_each(|row| (row.mib, row.content) = (mib, content.description()));
    rows
}

/// Keeps the newest frame only: a small disk has to do.
fn take_and_forget(stage: &Stage, pid: i32, frame: &mut String) -> Row {
    let (row, taken) = stillframe(stage, pid);
    if !frame.is_empty() {
        fs::remove_file(stage.frame_file(frame)).unwrap();
    }
    *frame = taken;
    row
}

fn restores(stage: &Stage, restore: impl Fn() -> i32) -> f64 {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut root = 0;
        times.push(time_to_loop(stage, || {
            root = restore();
            root
        }));
        stage.kill_all();
        eventually("its id to be free", || (!ps::exists(root)).then_some(()));
    }
    middle(times)
}

pub fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn median(rows: Vec<Row>) -> Row {
    let of = |value: fn(&Row) -> Option<f64>| rows.iter().map(value).collect::<Option<Vec<f64>>>().map(middle);
    Row {
        pause_ms: of(|row| row.pause_ms),
        gap_ms: of(|row| Some(row.gap_ms)).unwrap_or_default(),
        durable_ms: of(|row| row.durable_ms),
        stored_mib: of(|row| row.stored_mib),
        ..rows[0].clone()
    }
}
