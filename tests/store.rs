//! A directory of frames: naming, committing, listing, keeping, and what it says when the disk is in the way.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sched::{unshare, CloneFlags};
use stillframe::image::{encode, Compression, Header, RunInBlock};
use stillframe::store::{compact, DirStore, FrameRef, Pending, Store};
use stillframe::{Error, Kind, Result};

const NOTHING: Option<&str> = None;

fn store() -> (tempfile::TempDir, DirStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::new(dir.path().join("store"));
    (dir, store)
}

/// Writes `data` into a begun frame and commits it.
fn fill(store: &DirStore, pending: Pending, data: &[u8]) -> Result<FrameRef> {
    let mut writer = pending.writer(&Header::new(None))?;
    writer.put(0, 0, data, Compression::None)?;
    let written = writer.finish(b"{}")?;
    store.commit(pending, &written)
}

fn take(store: &DirStore, name: &str, data: &[u8]) -> Result<FrameRef> {
    fill(store, store.begin(name)?, data)
}

fn frame(text: &str) -> FrameRef {
    text.parse().unwrap()
}

fn listed(store: &DirStore, name: Option<&str>) -> Vec<String> {
    store.list(name).unwrap().iter().map(FrameRef::to_string).collect()
}

/// Flips one byte in the middle of a frame.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Hidden files in the directory of a name, without lock and high-water mark.
fn leftovers(store: &DirStore, name: &str) -> Vec<String> {
    let entries = store.root().join(name).read_dir().unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".partial")).collect()
}

fn assert_says(error: &Error, kind: Kind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(!text.contains('\n') && words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn frames_are_numbered_listed_and_read_back() {
    let (_dir, store) = store();
    for (n, name) in ["web", "db", "web", "web"].iter().enumerate() {
        take(&store, name, &[n as u8; 5000]).unwrap();
    }
    assert_eq!(listed(&store, NOTHING), ["db@1", "web@1", "web@2", "web@3"]);
    assert_eq!(listed(&store, Some("web")), ["web@1", "web@2", "web@3"]);
    assert_eq!(listed(&store, Some("nobody")), [""; 0]);
    let mut content = [0; 5000];
    store.open(&frame("web@2")).unwrap().read_at(0, 0, &mut content).unwrap();
    assert_eq!(content, [2; 5000]);
    assert_says(&store.open(&frame("web@9")).unwrap_err(), Kind::NotFound, &["web@9", "store"]);
}

#[test]
fn only_the_owner_may_look_into_a_store() {
    let (_dir, store) = store();
    let frame = take(&store, "web", b"secret").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(store.root()), mode(&store.root().join("web"))), (0o700, 0o700));
    assert_eq!(mode(&store.path(&frame)), 0o600);
    assert!(store.path(&frame).ends_with("web/00000001.frame"));
}

#[test]
fn frames_are_found_by_name_number_and_path() {
    let (_dir, store) = store();
    (0..3).for_each(|n| drop(take(&store, "web", &[n]).unwrap()));
    let newest = store.resolve("web").unwrap();
    assert_eq!(newest.frame, Some(frame("web@3")));
    assert_eq!(store.resolve("web@2").unwrap().path, store.path(&frame("web@2")));
    let by_path = store.resolve(newest.path.to_str().unwrap()).unwrap();
    assert_eq!((by_path.path, by_path.frame), (newest.path, None));
    assert_says(&store.resolve("web@7").unwrap_err(), Kind::NotFound, &["web@7"]);
    assert_says(&store.resolve("db").unwrap_err(), Kind::NotFound, &["no frame of db"]);
    assert_says(&store.resolve("./db.frame").unwrap_err(), Kind::NotFound, &["./db.frame"]);
    assert_says(&store.resolve("..").unwrap_err(), Kind::Usage, &["starts with a dot"]);
}

#[test]
fn missing_store_is_named_until_the_first_frame_makes_it() {
    let (_dir, store) = store();
    for error in
        [store.list(None).unwrap_err(), store.list(Some("web")).unwrap_err(), store.resolve("web").unwrap_err()]
    {
        assert_says(&error, Kind::NotFound, &["does not exist", "checkpoint", store.root().to_str().unwrap()]);
    }
    assert_says(&store.begin("../web").unwrap_err(), Kind::Usage, &["'../web'"]);
    assert!(!store.root().exists());
    drop(store.begin("web").unwrap());
    assert_eq!(listed(&store, NOTHING), [""; 0]);
}

#[test]
fn numbers_are_never_used_twice() {
    let (_dir, store) = store();
    (0..3).for_each(|n| drop(take(&store, "web", &[n]).unwrap()));
    store.remove(&frame("web@2")).unwrap();
    store.remove(&frame("web@3")).unwrap();
    assert_says(&store.remove(&frame("web@3")).unwrap_err(), Kind::NotFound, &["web@3"]);
    assert_eq!(take(&store, "web", b"x").unwrap(), frame("web@4"));
    store.remove(&frame("web@4")).unwrap();
    store.remove(&frame("web@1")).unwrap();
    assert_eq!(listed(&store, NOTHING), [""; 0]);
    assert_eq!(take(&store, "web", b"x").unwrap(), frame("web@5"));
    fs::write(store.root().join("web/.seq"), "many\n").unwrap();
    assert_says(&take(&store, "web", b"x").unwrap_err(), Kind::Corrupt, &[".seq", "does not hold a number"]);
}

#[test]
fn retention_keeps_the_newest() {
    let (_dir, store) = store();
    (0..5).for_each(|n| drop(take(&store, "web", &[n]).unwrap()));
    assert_eq!(store.retain("web", 2).unwrap(), [frame("web@1"), frame("web@2"), frame("web@3")]);
    assert_eq!(store.retain("web", 9).unwrap(), []);
    assert_eq!(listed(&store, NOTHING), ["web@4", "web@5"]);
    assert_eq!(store.retain("web", 0).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn newest_intact_walks_back_over_damage_and_says_so() {
    let (_dir, store) = store();
    (0..4).for_each(|n| drop(take(&store, "web", &[n; 100]).unwrap()));
    assert!(store.newest_intact("web").unwrap().skipped.is_empty());
    damage(&store.path(&frame("web@4")));
    fs::write(store.path(&frame("web@3")), "").unwrap();
    let found = store.newest_intact("web").unwrap();
    assert_eq!(
        (found.frame, found.chain.bytes()),
        (frame("web@2"), store.path(&frame("web@1")).metadata().unwrap().len())
    );
    let skipped: Vec<_> = found.skipped.iter().map(|skipped| &skipped.frame).collect();
    assert_eq!(skipped, [&frame("web@4"), &frame("web@3")]);
    assert!(found.skipped.iter().all(|skipped| skipped.error.kind() == Kind::Corrupt));
    ["web@1", "web@2"].iter().for_each(|text| damage(&store.path(&frame(text))));
    assert_says(&store.newest_intact("web").unwrap_err(), Kind::Corrupt, &["none of the 4 frames", "web@4", "block 0"]);
    assert_says(&store.newest_intact("db").unwrap_err(), Kind::NotFound, &["no frame of db"]);
}

#[test]
fn dropped_frames_leave_nothing_and_the_living_are_not_swept() {
    let (_dir, store) = store();
    let first = store.begin("web").unwrap();
    let path = first.path().to_owned();
    fs::write(store.root().join("web/.partial-dead"), "half a frame").unwrap();
    let second = store.begin("web").unwrap();
    assert_eq!(leftovers(&store, "web").len(), 2, "the dead one is swept, the two living stay");
    assert!(path.exists());
    assert_eq!(listed(&store, NOTHING), [""; 0]);
    drop(second);
    assert_eq!(fill(&store, first, b"x").unwrap(), frame("web@1"));
    assert_eq!(leftovers(&store, "web"), [""; 0]);
}

#[test]
fn foreign_files_are_no_frames() {
    let (_dir, store) = store();
    take(&store, "web", b"x").unwrap();
    for name in ["1.frame", "00000000.frame", "notes.txt", "00000009.frame.bak"] {
        fs::write(store.root().join("web").join(name), "").unwrap();
    }
    fs::write(store.root().join("README"), "").unwrap();
    fs::create_dir(store.root().join(".hidden")).unwrap();
    assert_eq!(listed(&store, NOTHING), ["web@1"]);
    assert_eq!(take(&store, "web", b"x").unwrap(), frame("web@2"));
}

#[test]
fn only_finished_frames_are_committed() {
    let (_dir, store) = store();
    let (one, other) = (store.begin("web").unwrap(), store.begin("web").unwrap());
    let mut writer = one.writer(&Header::new(None)).unwrap();
    writer.put(0, 0, b"x", Compression::None).unwrap();
    let written = writer.finish(b"").unwrap();
    assert_says(&store.commit(other, &written).unwrap_err(), Kind::Usage, &["only finished frames"]);
    assert_eq!(store.commit(one, &written).unwrap(), frame("web@1"));
}

#[test]
fn eight_threads_get_distinct_contiguous_numbers() {
    let (_dir, store) = store();
    let one = |n: u8| (0..5).map(|_| take(&store, "web", &[n; 1000]).unwrap().seq()).collect::<Vec<_>>();
    let seqs: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || one(n))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(seqs.iter().copied().collect::<BTreeSet<_>>(), (1..=40).collect());
    assert_eq!(seqs.len(), 40);
    assert_eq!(listed(&store, NOTHING).len(), 40);
    assert_eq!(leftovers(&store, "web"), [""; 0]);
    assert!(store.newest_intact("web").unwrap().skipped.is_empty());
}

#[test]
fn vanished_store_is_named() {
    let (_dir, store) = store();
    let pending = store.begin("web").unwrap();
    let mut writer = pending.writer(&Header::new(None)).unwrap();
    writer.put(0, 0, b"x", Compression::None).unwrap();
    fs::remove_dir_all(store.root()).unwrap();
    let written = writer.finish(b"{}").unwrap();
    let error = store.commit(pending, &written).unwrap_err();
    assert_says(&error, Kind::NotFound, &["store/web was removed while", "take it again"]);
    assert_eq!(take(&store, "web", b"x").unwrap(), frame("web@1"));
}

/// Runs `test` with a tiny disk of its own, which nobody else sees.
fn with_tiny_disk(test: impl FnOnce(PathBuf) + Send) {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path();
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace, which needs root");
        mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING).unwrap();
        mount(Some("tmpfs"), disk, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=755")).unwrap();
        test(disk.to_owned());
        umount2(disk, MntFlags::MNT_DETACH).unwrap();
    };
    // A thread, because the namespace cannot be left again.
    std::thread::scope(|scope| scope.spawn(run).join()).expect("the test on the tiny disk failed");
}

#[test]
fn full_disk_is_named_and_costs_no_other_frame() {
    with_tiny_disk(|disk| {
        let store = DirStore::new(disk);
        take(&store, "web", &[1; 100_000]).unwrap();
        let error = take(&store, "web", &vec![2; 4 << 20]).unwrap_err();
        assert_says(&error, Kind::Io, &["cannot write frame", "free some space", "No space left"]);
        assert_eq!(error.errno(), Some(libc::ENOSPC));
        assert_eq!((listed(&store, NOTHING), leftovers(&store, "web").len()), (vec!["web@1".to_owned()], 0));
        assert_eq!(take(&store, "web", &[3; 100_000]).unwrap(), frame("web@2"));
        assert!(store.newest_intact("web").unwrap().skipped.is_empty());
    });
}

#[test]
fn compaction_on_a_full_disk_leaves_the_frame_as_it_is() {
    with_tiny_disk(|disk| {
        let store = DirStore::new(disk);
        let pending = store.begin("web").unwrap();
        let mut writer = pending.writer(&Header::new(None)).unwrap();
        writer.put(0, 0, &[1; 700_000], Compression::None).unwrap();
        let fresh = RunInBlock { object: 0, offset: 0, at: 0, len: 4096, generation: 1 };
        writer.append(&encode(&[2; 4096], Compression::None).unwrap(), &[fresh]).unwrap();
        let web = store.commit(pending, &writer.finish(b"{}").unwrap()).unwrap();
        let before = fs::read(store.path(&web)).unwrap();
        let error = compact(&store.path(&web), Compression::None, &mut |_, _| {}).unwrap_err();
        assert_says(&error, Kind::Io, &["cannot write frame", "free some space"]);
        assert!(fs::read(store.path(&web)).unwrap() == before && leftovers(&store, "web").is_empty());
        assert!(compact(&store.path(&web), Compression::Zstd(1), &mut |_, _| {}).unwrap().is_some());
    });
}

#[test]
fn read_only_store_is_named_and_can_be_read() {
    with_tiny_disk(|disk| {
        let store = DirStore::new(&disk);
        take(&store, "web", b"x").unwrap();
        mount(NOTHING, &disk, NOTHING, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NOTHING).unwrap();
        for error in [store.begin("web").unwrap_err(), store.begin("db").unwrap_err()] {
            assert_says(&error, Kind::Io, &["not writable", "name another store", "Read-only"]);
        }
        assert_says(&store.remove(&frame("web@1")).unwrap_err(), Kind::Io, &["not writable"]);
        assert_eq!(store.newest_intact("web").unwrap().frame, frame("web@1"));
    });
}
