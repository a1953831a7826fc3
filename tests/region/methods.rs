//! However memory is frozen, a snapshot is the same.

use stillframe::region::{Level, Method, Snapshot};

use super::{builder, fill, LONG};

const COUNT: usize = 1 << 20;

fn newest(store: &std::path::Path) -> Vec<u64> {
    Snapshot::newest(store, "test").unwrap().read("numbers").unwrap()
}

fn is_frozen_by(method: Method, name: &str) {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).method(method).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    for seed in 1..5 {
        fill(&mut region[..COUNT / seed as usize], seed);
        let expected = region.to_vec();
        let ticket = session.snapshot(&seed).unwrap();
        assert_eq!(ticket.info().method, name, "{}", ticket.info().why);
        fill(&mut region, 99);
        region.copy_from_slice(&expected);
        region[7] += 1;
        ticket.wait(Level::Verified, LONG).unwrap();
        assert!(newest(store.path()) == expected, "{name}, snapshot {seed}");
    }
}

#[test]
fn fork() {
    is_frozen_by(Method::Fork, "fork");
}

#[test]
fn write_protect() {
    is_frozen_by(Method::WriteProtect, "write-protect");
}

#[test]
fn a_write_protected_region_takes_what_the_kernel_writes_and_bounds_its_copies() {
    let store = tempfile::tempdir().unwrap();
    let limit = 1 << 20;
    let session = builder(store.path()).method(Method::WriteProtect).memory_limit(limit).block_size(64 << 10).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    let expected = region.to_vec();
    let ticket = session.snapshot(&()).unwrap();
    let file = std::fs::File::open("/dev/urandom").unwrap();
    let bytes: &mut [u8] = stillframe::region::bytemuck::cast_slice_mut(&mut region);
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes[100_000..100_200], 0).unwrap();
    fill(&mut region, 2);
    let info = ticket.wait(Level::Stored, LONG).unwrap();
    assert!(info.peak_copied_bytes <= limit && info.copied_bytes <= COUNT as u64 * 8, "{info:?}");
    assert!(newest(store.path()) == expected);
}

#[test]
fn a_write_protected_snapshot_can_be_cancelled_and_its_region_dropped_at_once() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).method(Method::WriteProtect).open().unwrap();
    for round in 0..4 {
        let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
        fill(&mut region, round);
        let ticket = session.snapshot(&round).unwrap();
        if round % 2 == 0 {
            ticket.cancel();
        }
        region[COUNT / 2] += 1;
        drop(region);
        let _ = ticket.wait(Level::Stored, LONG);
    }
    let numbers: Vec<u64> = super::noise(3).take(COUNT).collect();
    assert!(newest(store.path()) == numbers);
}

#[test]
fn copy() {
    is_frozen_by(Method::Copy, "copy");
}

#[test]
fn increments_hold_what_changed_and_say_so() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).increments(3).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    let mut parents = Vec::new();
    for round in 0..6 {
        let page = round as usize * 512;
        region[page * 3..page * 3 + 512].fill(round);
        let ticket = session.snapshot(&round).unwrap();
        region[0] = round + 100;
        let info = ticket.wait(Level::Verified, LONG).unwrap();
        parents.push(info.parent.as_ref().map(|parent| parent.seq()));
        match parents[round as usize] {
            Some(_) => assert!(info.changed_bytes < 64 << 10 && info.method == "copy", "{info:?}"),
            None => assert!(info.changed_bytes == COUNT as u64 * 8 && info.method == "fork", "{info:?}"),
        }
    }
    assert_eq!(parents, [None, Some(1), Some(2), Some(3), None, Some(5)]);
    let expected = region.to_vec();
    session.snapshot(&9).unwrap().wait(Level::Stored, LONG).unwrap();
    assert!(newest(store.path()) == expected);
}

#[test]
fn write_protected_increments_hold_the_blocks_that_changed() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).method(Method::WriteProtect).increments(3).block_size(64 << 10).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    for round in 0..6u64 {
        region[round as usize * 100_000] = round;
        let expected = region.to_vec();
        let ticket = session.snapshot(&round).unwrap();
        region[round as usize * 100_000] = 77;
        let info = ticket.wait(Level::Verified, LONG).unwrap();
        assert_eq!(info.parent.is_some(), round % 4 != 0);
        assert!(info.changed_bytes == COUNT as u64 * 8 || info.parent.is_some() && info.changed_bytes <= 3 * (64 << 10), "{info:?}");
        assert!(newest(store.path()) == expected, "round {round}");
    }
}

#[test]
fn a_failed_increment_loses_nothing_that_was_written() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    session.snapshot(&1).unwrap().wait(Level::Stored, LONG).unwrap();
    region[5000] = 5;
    let dir = store.path().join("test");
    std::fs::rename(&dir, store.path().join("away")).unwrap();
    std::fs::write(&dir, "").unwrap();
    session.snapshot(&2).unwrap().wait(Level::Stored, LONG).unwrap_err();
    std::fs::remove_file(&dir).unwrap();
    std::fs::rename(store.path().join("away"), &dir).unwrap();
    region[900_000] = 9;
    let info = session.snapshot(&3).unwrap().wait(Level::Stored, LONG).unwrap();
    assert!(info.parent.is_none());
    assert!(newest(store.path()) == region.to_vec());
    // Pages that are dropped, or written with zeros, are zero in the next one.
    region[..2000].fill(0);
    let info = session.snapshot(&4).unwrap().wait(Level::Stored, LONG).unwrap();
    assert!(info.parent.is_some() && newest(store.path()) == region.to_vec());
}

/// Processor time of this process so far.
fn processor_time() -> std::time::Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| std::time::Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64);
    of(usage.user_time()) + of(usage.system_time())
}

#[test]
#[ignore = "a program of the test below"]
fn idles_under_write_protection() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).method(Method::WriteProtect).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    session.snapshot(&1).unwrap().wait(Level::Stored, LONG).unwrap();
    fill(&mut region, 2);
    let before = processor_time();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let took = processor_time() - before;
    assert!(took.as_millis() < 200, "the library took {took:?} in a second in which nothing happened");
}

#[test]
fn a_session_that_has_nothing_to_do_takes_no_processor_time() {
    let dir = tempfile::tempdir().unwrap();
    let out = super::alone::program("methods::idles_under_write_protection", false, dir.path()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}

/// The program drops the pages of `region` from element `from` on.
fn drop_pages(region: &mut [u64], from: usize, len: usize) {
    // SAFETY: whole pages of a region, which read as zero from now on; any number is a number.
    let done = unsafe { libc::madvise(region[from..].as_mut_ptr().cast(), len * 8, libc::MADV_DONTNEED) };
    assert_eq!(done, 0);
}

#[test]
fn memory_dropped_under_write_protection_is_never_taken_for_what_was_there() {
    let store = tempfile::tempdir().unwrap();
    let (session, release) = super::tickets::held_up(builder(store.path()).method(Method::WriteProtect).in_flight(stillframe::region::InFlight::Queue(1)));
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    let first = session.snapshot(&1).unwrap();
    // The first one is read and waits to be committed; of the second one, nothing is read until then.
    while first.info().file_bytes == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let second = session.snapshot(&2).unwrap();
    assert_eq!(second.info().method, "write-protect");
    drop_pages(&mut region, 512 * 100, 512 * 10);
    drop(release);
    first.wait(Level::Stored, LONG).unwrap();
    let failed = second.wait(Level::Stored, LONG).unwrap_err();
    assert!(failed.to_string().contains("dropped memory of a region"), "{failed}");
    // It still takes writes, and the next snapshot is whole.
    region[512 * 104] = 7;
    let expected = region.to_vec();
    assert!(expected[512 * 100] == 0 && expected[512 * 110] != 0);
    session.snapshot(&3).unwrap().wait(Level::Verified, LONG).unwrap();
    assert!(newest(store.path()) == expected);
    // Dropped between two snapshots, it is zero in the increment.
    drop_pages(&mut region, 512 * 300, 512 * 10);
    let info = session.snapshot(&4).unwrap().wait(Level::Verified, LONG).unwrap();
    assert!(info.parent.is_some() && newest(store.path())[512 * 300..512 * 310].iter().all(|&number| number == 0));
}
