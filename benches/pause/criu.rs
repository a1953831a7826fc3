//! The same measurements with CRIU, if there is one that works on this kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::kit::{bounded, Stage};
use crate::measure::{gap_during, millis, Row};

/// Whether a `criu` is on PATH and `criu check` passes; says so if not.
pub fn available() -> bool {
    match Command::new("criu").arg("check").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => true,
        Ok(_) => {
            println!("# no CRIU to compare with: `criu check` fails on this kernel");
            false
        }
        Err(_) => {
            println!("# no CRIU to compare with: there is no criu on PATH");
            false
        }
    }
}

/// Dumps that leave the program running; the images of the last are kept.
pub fn dump(stage: &Stage, pid: i32, rounds: usize) -> (Vec<Row>, PathBuf) {
    let images = stage.store().join("criu");
    let rows = (0..rounds).map(|_| dump_once(stage, pid, &images)).collect();
    (rows, images)
}

fn dump_once(stage: &Stage, pid: i32, images: &Path) -> Row {
    // Only the first round has nothing to remove.
    let _ = fs::remove_dir_all(images);
    fs::create_dir(images).unwrap();
    let (gap_ms, durable_ms) = gap_during(stage, || {
        let begun = Instant::now();
        let mut criu = Command::new("criu");
        bounded(criu.args(["dump", "--leave-running", "-t", &pid.to_string(), "-D"]).arg(images)).unwrap_or_else(|e| panic!("criu dump: {e}"));
        // CRIU does not wait for the disk; a frame counts only when it is safe there.
        nix::unistd::sync();
        millis(begun.elapsed())
    });
    Row { method: "criu", gap_ms, durable_ms: Some(durable_ms), stored_mib: Some(size_of(images)), ..Row::default() }
}

fn size_of(images: &Path) -> f64 {
    let files = fs::read_dir(images).unwrap().flatten();
    files.map(|file| file.metadata().unwrap().len() as f64).sum::<f64>() / f64::from(1 << 20)
}

/// Restores and gives the root's pid.
pub fn restore(images: &Path) -> i32 {
    let pidfile = images.join("restored.pid");
    // Left over from the restore before.
    let _ = fs::remove_file(&pidfile);
    let mut criu = Command::new("criu");
    bounded(criu.args(["restore", "--restore-detached", "--pidfile"]).arg(&pidfile).arg("-D").arg(images)).unwrap_or_else(|e| panic!("criu restore: {e}"));
    fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap()
}
