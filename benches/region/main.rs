//! What a snapshot costs the program that takes it: `cargo bench --bench region`.
//!
//! A region of 1 GiB (`STILLFRAME_BENCH_MIB`) of which 1 %, 10 % or all pages are written between snapshots, against a plain
//! synchronous write and against a fork whose child writes. Then the slowdown of a program that writes such a share of its pages
//! over and over, with one snapshot in 10 s (`STILLFRAME_BENCH_SECONDS`). Files go to `STILLFRAME_BENCH_DIR`, else to a
//! temporary directory.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use stillframe::region::{bytemuck, Compression, Info, Level, Method, Region, Resume, Session};
use stillframe::sys::clone;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const SHARES: [usize; 3] = [1, 10, 100];
const ROUNDS: usize = 3;
const LONG: Duration = Duration::from_secs(600);
/// Numbers in a page.
const PAGE: usize = 512;

/// Writes to `share` percent of the pages, spread over all.
fn touch(numbers: &mut [u64], share: usize, value: u64) {
    numbers.chunks_mut(PAGE * 100 / share).for_each(|pages| pages[0] = value);
}

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

fn write(path: &Path, numbers: &[u64]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytemuck::cast_slice(numbers))?;
    file.sync_all()
}

/// One row of the table of costs.
fn row(method: &str, share: &str, blocks: f64, complete: f64, mib: f64, note: &str) {
    println!("{method:<22} {share:>6} {blocks:>12.2} {complete:>14.0} {mib:>12.1}  {note}");
}

fn plain(dir: &Path, numbers: &mut [u64]) -> Outcome<()> {
    let mib = (numbers.len() * 8) as f64 / f64::from(1 << 20);
    let path = dir.join("plain");
    let begun = Instant::now();
    write(&path, numbers)?;
    row("synchronous write", "-", millis(begun.elapsed()), millis(begun.elapsed()), mib, "");
    let begun = Instant::now();
    let child = clone::child(0, || i32::from(write(&path, numbers).is_err()))?;
    let blocks = begun.elapsed();
    touch(numbers, 10, 1);
    waitpid(Pid::from_raw(child), None)?;
    row("fork, child writes", "-", millis(blocks), millis(begun.elapsed()), mib, "");
    std::fs::remove_file(path)?;
    Ok(())
}

fn session(store: &Path, method: Method) -> Outcome<Session> {
    Ok(Session::builder("bench").store(store).method(method).resume(Resume::Fresh).keep(2).compression(Compression::None).memory_limit(1 << 30).open()?)
}

fn snapshot(session: &Session) -> Outcome<Info> {
    Ok(session.snapshot(&())?.wait(Level::Stored, LONG)?)
}

fn costs(store: &Path, method: Method, count: usize) -> Outcome<()> {
    let session = session(store, method)?;
    let mut region: Region<u64> = session.alloc("numbers", count)?;
    fill(&mut region);
    let name = format!("{method:?}").to_lowercase();
    let mib = |info: &Info| info.file_bytes as f64 / f64::from(1 << 20);
    let first = snapshot(&session)?;
    row(&name, "first", first.pause_ns as f64 / 1e6, first.stored_ns as f64 / 1e6, mib(&first), &format!("{}: {}", first.method, first.why));
    for share in SHARES {
        let mut infos = Vec::new();
        for round in 0..ROUNDS {
            touch(&mut region, share, round as u64);
            infos.push(snapshot(&session)?);
        }
        let of = |value: fn(&Info) -> u64| median(infos.iter().map(|info| value(info) as f64 / 1e6).collect());
        let last = &infos[ROUNDS - 1];
        row(&name, &format!("{share} %"), of(|info| info.pause_ns), of(|info| info.stored_ns), mib(last), &format!("{}: {}", last.method, last.why));
    }
    Ok(())
}

/// Passes over the memory in `time`, each with some computation, so that a page is written about once in ten milliseconds.
fn passes(region: &mut [u64], share: usize, time: Duration, mut now_and_then: impl FnMut(Duration) -> Outcome<()>) -> Outcome<u64> {
    let (begun, mut done) = (Instant::now(), 0u64);
    while begun.elapsed() < time {
        let sum = region.iter().step_by(PAGE / 8).fold(done, |sum, number| sum.wrapping_add(*number));
        touch(region, share, sum);
        done += 1;
        now_and_then(begun.elapsed())?;
    }
    Ok(done)
}

fn slowdown(store: &Path, count: usize, time: Duration) -> Outcome<()> {
    println!("\n{:<22} {:>6} {:>12} {:>14} {:>10}", "slowdown", "dirty", "passes alone", "with snapshot", "slower");
    for method in [Method::Auto, Method::Fork, Method::WriteProtect] {
        for share in SHARES {
            let session = session(store, method)?;
            let mut region: Region<u64> = session.alloc("numbers", count)?;
            fill(&mut region);
            let alone = passes(&mut region, share, time, |_| Ok(()))?;
            // The first one is not what a program pays every ten seconds.
            snapshot(&session)?;
            let mut ticket = None;
            let with = passes(&mut region, share, time, |passed| {
                if ticket.is_none() && passed > time / 10 {
                    ticket = Some(session.snapshot(&())?);
                }
                Ok(())
            })?;
            ticket.map_or(Ok(()), |ticket| ticket.wait(Level::Stored, LONG).map(drop))?;
            let slower = 100.0 * (1.0 - with as f64 / alone as f64);
            println!("{:<22} {:>4} % {alone:>12} {with:>14} {slower:>8.1} %", format!("{method:?}").to_lowercase(), share);
        }
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let number = |key: &str, usual: u64| std::env::var(key).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (mib, seconds) = (number("STILLFRAME_BENCH_MIB", 1024), number("STILLFRAME_BENCH_SECONDS", 10));
    let scratch = std::env::var_os("STILLFRAME_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(scratch)?;
    let count = (mib as usize) << 17;
    println!("{mib} MiB; load {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    println!("{:<22} {:>6} {:>12} {:>14} {:>12}", "method", "dirty", "blocks ms", "complete ms", "stored MiB");
    let mut numbers = vec![0u64; count];
    fill(&mut numbers);
    plain(dir.path(), &mut numbers)?;
    drop(numbers);
    for method in [Method::Auto, Method::Fork, Method::WriteProtect] {
        costs(&dir.path().join("store"), method, count)?;
    }
    slowdown(&dir.path().join("store"), count, Duration::from_secs(seconds))
}
