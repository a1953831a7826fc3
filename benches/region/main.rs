//! What a snapshot costs the program that takes it: `cargo bench --bench region`.
//!
//! First what it blocks: a region of 1 GiB (`STILLFRAME_BENCH_MIB`) of which 1 %, 10 % or all pages are written between
//! snapshots, against a plain synchronous write and against a fork whose child writes. Then how much slower a solver is that
//! reads all of it and writes such a share of it in every step, with one snapshot in 10 s (`STILLFRAME_BENCH_SECONDS`).
//! Figures stand beside their bars; if one is missed, the program says so and ends with status 1. Files go to
//! `STILLFRAME_BENCH_DIR`, else to a temporary directory.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use stillframe::region::Method;

mod blocking;
mod solver;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Shares of the pages that are written, in percent.
const SHARES: [usize; 3] = [1, 10, 100];
const METHODS: [Method; 3] = [Method::Auto, Method::Fork, Method::WriteProtect];
const LONG: Duration = Duration::from_secs(600);
/// Numbers in a page.
const PAGE: usize = 512;
const MIB: f64 = (1 << 20) as f64;

/// Half of it compresses well, half does not at all.
fn fill(numbers: &mut [u64]) {
    let mut seed = 1u64;
    for (at, number) in numbers.iter_mut().enumerate() {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *number = if at % 2 == 0 { seed } else { at as u64 };
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn name(method: Method) -> &'static str {
    match method {
        Method::Fork => "fork",
        Method::WriteProtect => "write-protect",
        _ => "auto",
    }
}

/// How many figures missed their bars.
#[derive(Default)]
struct Missed(usize);

impl Missed {
    /// A bar as text, with a mark if `figure` is above it.
    fn hold(&mut self, figure: f64, bar: f64) -> String {
        let met = figure <= bar;
        self.0 += usize::from(!met);
        format!("{bar:.1}{}", if met { "" } else { " MISSED" })
    }
}

fn main() -> Outcome<()> {
    let number = |key: &str, usual: u64| std::env::var(key).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (mib, seconds) = (number("STILLFRAME_BENCH_MIB", 1024), number("STILLFRAME_BENCH_SECONDS", 10));
    let scratch = std::env::var_os("STILLFRAME_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(scratch)?;
    let (count, store, mut missed) = ((mib as usize) << 17, dir.path().join("store"), Missed::default());
    println!("{mib} MiB; load {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    let begun = Instant::now();
    blocking::compare(dir.path(), &store, count, &mut missed)?;
    solver::compare(&store, count, Duration::from_secs(seconds), &mut missed)?;
    println!("\n{} bars missed; {:.0} s", missed.0, begun.elapsed().as_secs_f64());
    match missed.0 {
        0 => Ok(()),
        _ => Err("a figure is above its bar".into()),
    }
}
