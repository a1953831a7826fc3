//! How long a checkpoint stops a busy program, beside a bare fork of the same memory, and CRIU where there is one.
//!
//! `cargo bench --bench pause [-- MIB...]`, as root. Sizes that do not fit into free memory are left out, and named.

#[path = "../../tests/kit/mod.rs"]
#[allow(dead_code)] // only the harness for live processes is used
mod kit;

mod criu;
mod measure;

use measure::{Content, Row};

const SIZES_MIB: [u64; 3] = [256, 1024, 4096];
const ROUNDS: usize = 3;

fn main() {
    // Cargo passes "--bench" along.
    let asked: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if asked.is_empty() { SIZES_MIB.to_vec() } else { asked };
    println!("# pause of a program that rewrites 4,000 random 4 KiB pages a second; medians of {ROUNDS}");
    let criu = criu::available();
    let mut rows = Vec::new();
    for mib in sizes {
        if let Some(reason) = lacks_memory(mib) {
            println!("# {mib} MiB left out: {reason}");
            continue;
        }
        for content in [Content::Random, Content::Patterned] {
            rows.extend(measure::all(mib, content, criu));
        }
    }
    print_table(&rows);
    rows.iter().for_each(|row| println!("{}", serde_json::to_string(row).unwrap()));
}

/// The program, its copies of rewritten pages, the frame in the page cache, the restored program.
fn lacks_memory(mib: u64) -> Option<String> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let free = line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024;
    let wanted = mib * 5 / 2 + 512;
    (free < wanted).then(|| format!("{free} MiB of memory are free, {wanted} are wanted"))
}

fn print_table(rows: &[Row]) {
    println!("{:<12} {:>6} {:<14} {:>10} {:>10} {:>11} {:>10} {:>11}", "method", "MiB", "content", "pause ms", "gap ms", "durable ms", "MiB kept", "restore ms");
    let cell = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
    for row in rows {
        let (pause, gap, durable) = (cell(row.pause_ms), cell(Some(row.gap_ms)), cell(row.durable_ms));
        let (kept, restore) = (cell(row.stored_mib), cell(row.restore_ms));
        println!("{:<12} {:>6} {:<14} {pause:>10} {gap:>10} {durable:>11} {kept:>10} {restore:>11}", row.method, row.mib, row.content);
    }
}
