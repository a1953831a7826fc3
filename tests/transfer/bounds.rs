//! What a transfer may take: memory, bytes a second, room on the disk; and that it stops when asked to.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::mount::{mount, umount, MsFlags};
use stillframe::checkpoint::{checkpoint, Options};
use stillframe::image::Compression;
use stillframe::store::{DirStore, Store};
use stillframe::transfer::{How, Progress, MEMORY};
use stillframe::Kind;

use crate::dice::Dice;
use crate::kit::{build, eventually, ps, stillframe, Live, Stage};
use crate::{frame, scratch};

fn noise(len: usize) -> Vec<u8> {
    let mut dice = Dice(len as u64);
    (0..len / 8).flat_map(|_| dice.next().to_le_bytes()).collect()
}

#[test]
fn a_rate_is_kept_and_never_run_ahead_of() {
    const RATE: u64 = 8 << 20;
    let (_dir, path) = scratch();
    let news = Arc::new(Mutex::new(Vec::new()));
    let told = news.clone();
    let progress = Progress::new(move |status| {
        told.lock().unwrap().push((Instant::now(), status.written));
        true
    });
    let bytes = noise(2 * RATE as usize);
    let how = How { compression: Compression::None, rate_limit: Some(RATE), progress: Some(progress) };
    let begun = Instant::now();
    frame(&path, &how, |feed| {
        feed.announce(0, bytes.len() as u64)?;
        feed.bytes(0, 0, &bytes, 0)
    })
    .unwrap();
    let took = begun.elapsed().as_secs_f64();
    // It may be slower where the machine is busy, but not much.
    assert!((1.6..6.0).contains(&took), "2 s worth of bytes took {took} s");
    let news = news.lock().unwrap();
    assert!(news.len() > 10, "told {} times", news.len());
    for (at, written) in news.iter() {
        let allowed = (at.duration_since(begun).as_secs_f64() + 0.2) * RATE as f64;
        assert!((*written as f64) < allowed * 1.2, "{written} bytes after {:?}", at.duration_since(begun));
    }
}

#[test]
fn a_very_low_rate_still_ends_at_once_when_it_is_cancelled() {
    let (_dir, path) = scratch();
    let begun = Instant::now();
    let progress = Progress::new(move |_| begun.elapsed() < Duration::from_millis(300));
    let how = How { compression: Compression::None, rate_limit: Some(1000), progress: Some(progress) };
    let error = frame(&path, &how, |feed| feed.bytes(0, 0, &noise(1 << 20), 0)).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled, "{error}");
    // At that rate a block alone would take a minute.
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// A program that holds `mib` MiB of `what`.
fn hog<'a>(stage: &'a Stage, mib: u64, what: &str) -> Live<'a> {
    let live = stage.start(Command::new(build("transfer", "hog")).arg(mib.to_string()).arg(what));
    eventually("the memory to be filled", || stage.work("ready").exists().then_some(()));
    live
}

/// The most memory that a checkpoint held at any time, in bytes.
fn peak(stage: &Stage, pid: i32, compression: &str) -> u64 {
    let mut command = stillframe();
    command.args(["checkpoint", &pid.to_string(), "--quiet", "--compress", compression, "--store"]).arg(stage.store());
    let mut child = command.spawn().unwrap();
    let status = fs::File::open(format!("/proc/{}/status", child.id())).unwrap();
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let mut text = [0; 4096];
        // A process that has just ended has no memory to tell of.
        let len = status.read_at(&mut text, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(&text[..len]).into_owned();
        let row = text.lines().find_map(|row| row.strip_prefix("VmHWM:"));
        peak = peak.max(row.map_or(0, |row| row.trim().trim_end_matches(" kB").parse::<u64>().unwrap()));
        std::thread::sleep(Duration::from_micros(500));
    }
    assert!(child.wait().unwrap().success());
    peak * 1024
}

#[test]
fn memory_does_not_grow_with_the_program() {
    let stage = Stage::new();
    let small = hog(&stage, 1, "zeros");
    let base = peak(&stage, small.pid(), "none");
    small.kill();
    for (what, compression) in [("noise", "none"), ("text", "zstd:1"), ("noise", "auto")] {
        fs::remove_file(stage.work("ready")).unwrap();
        let live = hog(&stage, 1024, what);
        let taken = peak(&stage, live.pid(), compression).saturating_sub(base);
        live.kill();
        assert!(taken > 1 << 20, "{taken} bytes are too few to be true");
        assert!(taken <= MEMORY, "{} MiB for a program of 1 GiB with {what}, {compression}", taken >> 20);
        fs::remove_dir_all(stage.store().join("hog")).unwrap();
    }
}

#[test]
fn a_cancelled_checkpoint_leaves_the_program_and_the_store_as_they_were() {
    let stage = Stage::new();
    let live = hog(&stage, 64, "noise");
    let store = DirStore::new(stage.store());
    let progress = Progress::new(|status| status.fed < 8 << 20);
    let error = checkpoint(live.pid(), &store, &Options { progress: Some(progress), rate_limit: Some(64 << 20), ..Options::default() }).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled, "{error}");
    assert_eq!(store.list(None).unwrap(), []);
    let left: Vec<_> = fs::read_dir(stage.store().join("hog")).unwrap().map(|entry| entry.unwrap().file_name()).filter(|name| name.to_string_lossy().starts_with(".partial")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(ps::alive(live.pid()));
    checkpoint(live.pid(), &store, &Options::default()).unwrap();
    live.kill();
}

/// A file system in memory with room for little.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Small {
        fs::create_dir(&path).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=8m")).expect("a tmpfs; this test needs root");
        Small(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount(&self.0).unwrap();
    }
}

#[test]
fn a_store_that_fills_up_ends_the_transfer_and_a_small_frame_fits() {
    let (dir, _) = scratch();
    let small = Small::mount(dir.path().join("small"));
    let path = small.0.join("1.frame");
    let how = How { compression: Compression::None, ..How::default() };
    let bytes = noise(48 << 20);
    let error = frame(&path, &how, |feed| feed.bytes(0, 0, &bytes, 0)).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOSPC), "{error}");
    let (totals, (), _) = frame(&path, &how, |feed| feed.bytes(0, 0, &bytes[..6 << 20], 0)).unwrap();
    assert_eq!(totals.raw_bytes, 6 << 20);
}
