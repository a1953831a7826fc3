//! Pages that are not there, processes that are gone, files that take no more: each ends in one clear error or a list.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use stillframe::image::{Compression, FrameWriter, Header};
use stillframe::sys::PAGE;
use stillframe::tracee::memory::Memory;
use stillframe::transfer::{self, How};
use stillframe::{Error, Kind};

use crate::arena::Arena;
use crate::{frame, scratch};

const RAW: How = How { compression: Compression::None, rate_limit: None, progress: None };

#[test]
fn absent_pages_are_named_and_the_rest_is_there() {
    let arena_range = |arena: &Arena| vec![arena.range()];
    check_absent(false, arena_range);
    // Pages just written come in short ranges, next to each other or not, and are read many at a time.
    check_absent(true, arena_range);
    check_absent(true, |arena| (0..3000).map(|page| (arena.address(page), arena.address(page + 1))).collect());
    check_absent(true, |arena| (0..3000).step_by(20).map(|page| (arena.address(page), arena.address(page + 20))).collect());
}

fn check_absent(written: bool, ranges: impl Fn(&Arena) -> Vec<(u64, u64)>) {
    let (_dir, path) = scratch();
    let mut arena = Arena::new(3000);
    (0..3000).for_each(|page| arena.set(page, &[1 + (page % 200) as u8; PAGE as usize]));
    let gaps = [(0, 1), (500, 2), (900, 1500), (2999, 1)];
    let twin = arena.split(&gaps, &[(600, 50)]);
    let ranges = ranges(&arena);
    let (_, missing, reader) = frame(&path, &RAW, |feed| feed.memory_of_running(1, &twin.memory, &ranges, 0, written)).unwrap();
    assert_eq!(missing, gaps.map(|(page, count)| (arena.address(page), arena.address(page + count))));
    let mut bytes = vec![0; PAGE as usize];
    for page in (0..3000).filter(|page| !gaps.iter().any(|gap| (gap.0..gap.0 + gap.1).contains(page))) {
        reader.read_at(1, arena.address(page), &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 1 + (page % 200) as u8), "page {page}");
    }
    assert_eq!(reader.runs(1).map(|run| run.len).sum::<u64>(), (3000 - 1504) * PAGE);
}

#[test]
fn a_stopped_process_must_have_all_its_pages() {
    let (_dir, path) = scratch();
    let arena = Arena::new(10);
    let twin = arena.split(&[(4, 1)], &[]);
    let error = frame(&path, &RAW, |feed| feed.memory(1, &twin.memory, &[arena.range()], 0)).unwrap_err();
    assert!(error.to_string().contains(&format!("{:#x}", arena.address(4))), "{error}");
}

#[test]
fn a_process_that_is_gone_is_an_error_and_no_absent_page() {
    let (_dir, path) = scratch();
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let memory = Memory::open(child.id() as i32).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let error = frame(&path, &RAW, |feed| feed.memory_of_running(1, &memory, &[(0x10000, 0x20000)], 0, true)).unwrap_err();
    assert_eq!(error.kind(), Kind::TargetGone, "{error}");
}

#[test]
fn a_failure_that_the_producer_gets_over_loses_nothing_fed_before() {
    let (_dir, path) = scratch();
    let mut arena = Arena::new(10);
    (0..10).for_each(|page| arena.set(page, &[1 + page as u8; PAGE as usize]));
    let twin = arena.split(&[(4, 1)], &[]);
    let (_, (), reader) = frame(&path, &RAW, |feed| {
        feed.bytes(0, 0, b"before", 0)?;
        // More often than there are blocks.
        for generation in 0..50 {
            feed.memory(1, &twin.memory, &[arena.range()], generation).unwrap_err();
        }
        feed.settle()?;
        feed.bytes(0, 6, b" and after", 0)
    })
    .unwrap();
    let mut bytes = vec![0; 16];
    reader.read_at(0, 0, &mut bytes).unwrap();
    assert_eq!(bytes, b"before and after");
    assert_eq!(reader.runs(1).map(|run| run.len).sum::<u64>(), 4 * PAGE, "what was read before the failure");
}

#[test]
fn the_producers_failure_wins() {
    let (_dir, path) = scratch();
    let begun = Instant::now();
    let error = frame(&path, &How { compression: Compression::Zstd(19), ..How::default() }, |feed| -> Result<(), Error> {
        feed.bytes(0, 0, &vec![5; 8 << 20], 0)?;
        Err(Error::new(Kind::Busy, "enough"))
    });
    assert_eq!(error.unwrap_err().to_string(), "enough");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// Feeds until feeding fails, or so much that it must have failed.
fn feed_into(file: File) -> Error {
    let path = Path::new("the frame");
    let mut writer = FrameWriter::create(file, path, &Header::new(None)).unwrap();
    let bytes = vec![5; 1 << 20];
    let mut fed = 0;
    let error = transfer::run(&mut writer, &RAW, |feed| {
        for at in 0..1000u64 {
            feed.bytes(0, at << 20, &bytes, 0)?;
            fed += 1;
        }
        Ok(())
    });
    assert!(fed < 100, "{fed} MiB were fed to a file that takes none");
    error.unwrap_err()
}

#[test]
fn a_full_disk_ends_the_feed() {
    let error = feed_into(OpenOptions::new().write(true).open("/dev/full").unwrap());
    assert_eq!(error.errno(), Some(libc::ENOSPC));
    assert!(error.to_string().contains("free some space"), "{error}");
}

#[test]
fn a_file_that_cannot_be_written_ends_the_feed() {
    let error = feed_into(File::open("/dev/null").unwrap());
    assert_eq!(error.errno(), Some(libc::EBADF), "{error}");
}

#[test]
fn a_failure_that_the_producer_passes_over_is_told_all_the_same() {
    let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut writer = FrameWriter::create(file, Path::new("the frame"), &Header::new(None)).unwrap();
    let error = transfer::run(&mut writer, &RAW, |feed| {
        // Whoever does not look must be told at the end.
        (0..8u64).for_each(|at| drop(feed.bytes(0, at << 20, &[5; 1 << 20], 0)));
        drop(feed.settle());
        Ok(())
    });
    assert_eq!(error.unwrap_err().errno(), Some(libc::ENOSPC));
}
