//! When something goes wrong, the last version stays and the program goes on.

use std::fs;

use stillframe::error::Kind;
use stillframe::region::{Level, Snapshot};

use super::{builder, fill, holds, LONG};

const COUNT: usize = 1 << 18;

#[test]
fn a_store_that_vanishes_is_told_by_the_ticket_and_comes_back() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    session.snapshot(&()).unwrap().wait(Level::Stored, LONG).unwrap();
    let away = store.path().with_extension("away");
    fs::rename(store.path(), &away).unwrap();
    fs::write(store.path(), "not a directory").unwrap();
    fill(&mut region, 2);
    let failed = session.snapshot(&()).unwrap().wait(Level::Stored, LONG).unwrap_err();
    assert!(failed.to_string().contains("store") || failed.to_string().contains("test"), "{failed}");
    fs::remove_file(store.path()).unwrap();
    fs::rename(&away, store.path()).unwrap();
    assert!(holds(&Snapshot::newest(store.path(), "test").unwrap().read::<u64>("numbers").unwrap(), 1));
    session.snapshot(&()).unwrap().wait(Level::Stored, LONG).unwrap();
    assert!(holds(&Snapshot::newest(store.path(), "test").unwrap().read::<u64>("numbers").unwrap(), 2));
}

#[test]
fn damage_is_found_and_the_version_before_it_taken() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).increments(0).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    for seed in [1, 2] {
        fill(&mut region, seed);
        session.snapshot(&seed).unwrap().wait(Level::Stored, LONG).unwrap();
    }
    drop(region);
    session.close().unwrap();
    let file = store.path().join("test/00000002.frame");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let session = builder(store.path()).open().unwrap();
    assert_eq!(session.state::<u64>().unwrap(), Some(1));
    assert!(holds(&session.alloc::<u64>("numbers", COUNT).unwrap(), 1));
    assert_eq!(Snapshot::open(store.path(), "test", 2).unwrap().read::<u64>("numbers").unwrap_err().kind(), Kind::Corrupt);
}

/// A file system of its own, gone when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn new(options: &str) -> Small {
        let dir = tempfile::tempdir().unwrap();
        nix::mount::mount(Some("none"), dir.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options)).expect("mounting a tmpfs takes root");
        Small(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_is_told_by_the_ticket_and_the_last_version_stays() {
    let small = Small::new("size=5m");
    let path = small.0.path();
    let session = builder(path).increments(0).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT * 2).unwrap();
    fill(&mut region[..COUNT], 1);
    session.snapshot(&1).unwrap().wait(Level::Stored, LONG).unwrap();
    fill(&mut region, 2);
    for _ in 0..2 {
        let failed = session.snapshot(&2).unwrap().wait(Level::Stored, LONG).unwrap_err();
        assert!(failed.errno() == Some(nix::errno::Errno::ENOSPC as i32) && failed.to_string().contains("free some space"), "{failed}");
    }
    let snapshot = Snapshot::newest(path, "test").unwrap();
    assert!(snapshot.frame().seq() == 1 && holds(&snapshot.read::<u64>("numbers").unwrap()[..COUNT], 1));
    // Room again, and all is well.
    nix::mount::mount(None::<&str>, path, None::<&str>, nix::mount::MsFlags::MS_REMOUNT, Some("size=50m")).unwrap();
    session.snapshot(&3).unwrap().wait(Level::Stored, LONG).unwrap();
    assert!(holds(&Snapshot::newest(path, "test").unwrap().read::<u64>("numbers").unwrap(), 2));
}
