//! How long a frame takes to be safe on the disk, and how much CPU time, beside `dd oflag=direct` of as many bytes.
//!
//! `cargo bench --bench transfer [-- MIB...]`, as root; `dd` writes to the directory that the store is in, which $TMPDIR names.
//! Sizes that do not fit into free memory or on the disk are left out, and named.

#[path = "../../tests/kit/mod.rs"]
#[allow(dead_code)] // only the harness for live processes is used
mod kit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{getrusage, UsageWho};
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeVal;

use kit::{bounded, build, eventually, Live, Stage};

const SIZES_MIB: [u64; 2] = [1024, 4096];
const ROUNDS: usize = 3;
/// What the memory holds, and how it is compressed.
const RUNS: [(&str, &str); 5] = [("noise", "none"), ("noise", "auto"), ("text", "auto"), ("text", "zstd:1"), ("zeros", "auto")];

/// A line of the table; times are seconds.
#[derive(Debug, Clone, serde::Serialize)]
struct Row {
    method: String,
    mib: u64,
    content: &'static str,
    durable: f64,
    cpu: f64,
    stored_mib: f64,
    /// Bytes of memory a second until they are durable, as a share of what `dd` writes a second.
    of_dd: f64,
}

fn main() {
    // Cargo passes "--bench" along.
    let asked: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if asked.is_empty() { SIZES_MIB.to_vec() } else { asked };
    println!("# time to durable and CPU time of a whole frame; medians of {ROUNDS} rounds that take turns with dd");
    println!("{:<18} {:>6} {:<8} {:>10} {:>8} {:>8} {:>10} {:>6}", "method", "MiB", "content", "durable s", "GB/s", "CPU s", "MiB kept", "of dd");
    let mut rows = Vec::new();
    for mib in sizes {
        match lacks_room(mib) {
            Some(reason) => println!("# {mib} MiB left out: {reason}"),
            None => rows.extend(RUNS.into_iter().flat_map(|(content, compression)| measure(mib, content, compression))),
        }
    }
    rows.iter().for_each(|row| println!("{}", serde_json::to_string(row).unwrap()));
}

/// The program, and the buffers of whoever else is at work; a frame and a file of dd.
fn lacks_room(mib: u64) -> Option<String> {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let memory = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024;
    let stat = statvfs(&std::env::temp_dir()).unwrap();
    let disk = stat.blocks_available() * stat.fragment_size() / (1 << 20);
    [("memory", memory, mib + 512), ("disk", disk, 2 * mib + 512)].into_iter().find(|(_, free, wanted)| free < wanted).map(|(what, free, wanted)| format!("{free} MiB of {what} are free, {wanted} are wanted"))
}

fn measure(mib: u64, content: &'static str, compression: &str) -> Vec<Row> {
    let stage = Stage::new();
    let live = hog(&stage, mib, content);
    let row = |method: String| Row { method, mib, content, durable: 0.0, cpu: 0.0, stored_mib: mib as f64, of_dd: 1.0 };
    let (mut plain, mut frames) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (durable, cpu, path) = timed(|| dd(&stage, mib));
        forget(&path);
        plain.push(Row { durable, cpu, ..row("dd oflag=direct".to_owned()) });
        let (durable, cpu, report) = timed(|| stage.checkpoint(live.pid(), &["--compress", compression]));
        forget(&stage.frame_file(&report.frame));
        let stored_mib = report.bytes as f64 / f64::from(1 << 20);
        frames.push(Row { durable, cpu, stored_mib, ..row(format!("stillframe {compression}")) });
    }
    live.kill();
    let (plain, frame) = (median(plain), median(frames));
    let rows = vec![plain.clone(), Row { of_dd: plain.durable / frame.durable, ..frame }];
    rows.iter().for_each(print);
    rows
}

fn hog<'a>(stage: &'a Stage, mib: u64, content: &str) -> Live<'a> {
    let live = stage.start(Command::new(build("transfer", "hog")).arg(mib.to_string()).arg(content));
    eventually("the memory to be filled", || stage.work("ready").exists().then_some(()));
    live
}

/// Seconds that passed, and that this machine's processors worked for it.
fn timed<T>(body: impl FnOnce() -> T) -> (f64, f64, T) {
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let cpu = || getrusage(UsageWho::RUSAGE_CHILDREN).map(|used| seconds(used.user_time()) + seconds(used.system_time())).unwrap();
    let (begun, before) = (Instant::now(), cpu());
    let value = body();
    (begun.elapsed().as_secs_f64(), cpu() - before, value)
}

/// The file that it wrote.
fn dd(stage: &Stage, mib: u64) -> PathBuf {
    let path = stage.store().join("dd");
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "oflag=direct", "bs=1M", "conv=fsync", "status=none"]).arg(format!("of={}", path.display())).arg(format!("count={mib}"));
    bounded(&mut dd).unwrap_or_else(|e| panic!("dd: {e}"));
    path
}

/// Removes a file; what the disk does about that must not fall to whoever comes next.
fn forget(path: &Path) {
    fs::remove_file(path).unwrap();
    nix::unistd::sync();
    std::thread::sleep(Duration::from_millis(200));
}

fn median(mut rows: Vec<Row>) -> Row {
    rows.sort_by(|one, other| one.durable.total_cmp(&other.durable));
    rows[rows.len() / 2].clone()
}

fn print(row: &Row) {
    let rate = row.mib as f64 * f64::from(1 << 20) / row.durable / 1e9;
    println!("{:<18} {:>6} {:<8} {:>10.3} {rate:>8.2} {:>8.2} {:>10.1} {:>6.2}", row.method, row.mib, row.content, row.durable, row.cpu, row.stored_mib, row.of_dd);
}
