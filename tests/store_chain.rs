//! Frames that build upon others in a store: what may be removed, what is kept, and what is intact.

#[allow(dead_code)]
mod dice;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dice::Dice;
use stillframe::image::{read_header, Chain, Compression, FrameId, Header};
use stillframe::store::{compact, Compacted, DirStore, FrameRef, Parent, Store};
use stillframe::{Error, Kind, Result};

const LEN: u64 = 5000;

fn store() -> (tempfile::TempDir, DirStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = DirStore::new(dir.path().join("store"));
    (dir, store)
}

/// Commits a frame whose byte number `byte` is of its own, and the rest its parent's, or zero.
fn take(store: &DirStore, parent: Option<FrameId>, byte: u64) -> Result<FrameRef> {
    let pending = store.begin("web")?;
    let mut writer = pending.writer(&Header::new(parent))?;
    match parent {
        Some(_) => writer.parent(0, 0, LEN, 0)?,
        None => writer.put(0, 0, &[0; LEN as usize], Compression::None)?,
    }
    let own = stillframe::image::RunInBlock { object: 0, offset: byte, at: 0, len: 1, generation: 1 };
    writer.append(&stillframe::image::encode(&[byte as u8 + 1], Compression::None)?, &[own])?;
    let written = writer.finish(b"{}")?;
    store.commit(pending, &written)
}

fn id(store: &DirStore, frame: &FrameRef) -> FrameId {
    read_header(&store.path(frame)).unwrap().id
}

/// A chain of `links` frames, the oldest first, of which each has set one more byte.
fn chain(store: &DirStore, links: u64) -> Vec<FrameRef> {
    let mut frames: Vec<FrameRef> = Vec::new();
    for byte in 0..links {
        let parent = frames.last().map(|frame| id(store, frame));
        frames.push(take(store, parent, byte).unwrap());
    }
    frames
}

/// Which bytes of a frame are set.
fn set(store: &DirStore, frame: &FrameRef) -> BTreeSet<u64> {
    let chain = store.open(frame).unwrap();
    chain.verify(&mut |_, _| {}).unwrap();
    let mut bytes = [0; LEN as usize];
    chain.read_at(0, 0, &mut bytes).unwrap();
    (0..).zip(bytes).filter(|(_, byte)| *byte != 0).map(|(at, _)| at).collect()
}

fn frame(seq: u64) -> FrameRef {
    FrameRef::new("web", seq).unwrap()
}

fn numbers(store: &DirStore) -> Vec<u64> {
    store.list(Some("web")).unwrap().iter().map(FrameRef::seq).collect()
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[120] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn assert_says(error: &Error, kind: Kind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    assert!(!text.contains('\n') && words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn what_a_child_needs_is_not_removed() {
    let (_dir, store) = store();
    chain(&store, 3);
    for doomed in [&[frame(1)][..], &[frame(2)], &[frame(1), frame(2)], &[frame(2), frame(3), frame(1), frame(9)]] {
        assert!(store.remove_all(doomed).is_err());
        assert_eq!(numbers(&store), [1, 2, 3]);
    }
    assert_says(&store.remove(&frame(1)).unwrap_err(), Kind::Refused, &["web@1 cannot be removed: web@2 builds upon it", "remove web@2 first", "stillframe compact web@2"]);
    store.remove(&frame(3)).unwrap();
    store.remove_all(&[frame(1), frame(2)]).unwrap();
    assert_eq!((numbers(&store), take(&store, None, 1).unwrap()), (vec![], frame(4)));
}

#[test]
fn a_damaged_child_keeps_its_parent_as_long_as_it_says_whose_it_is() {
    let (_dir, store) = store();
    chain(&store, 2);
    damage(&store.path(&frame(2)));
    assert!(store.remove(&frame(1)).is_err());
    fs::write(store.path(&frame(2)), "no frame at all").unwrap();
    assert_eq!(store.lineage("web").unwrap().parent(&frame(2)), None);
    store.remove(&frame(1)).unwrap();
}

#[test]
fn frames_of_several_names_go_together_or_not_at_all() {
    let (_dir, store) = store();
    chain(&store, 2);
    let pending = store.begin("db").unwrap();
    let written = pending.writer(&Header::new(None)).unwrap().finish(b"{}").unwrap();
    let db = store.commit(pending, &written).unwrap();
    assert!(store.remove_all(&[db.clone(), frame(1)]).is_err());
    assert_eq!(store.list(None).unwrap().len(), 3);
    store.remove_all(&[db, frame(1), frame(2)]).unwrap();
    assert!(store.list(None).unwrap().is_empty());
}

/// Random trees of frames, and how many are kept.
fn retention(seed: u64) {
    let (_dir, store) = store();
    let mut dice = Dice(seed);
    let count = 1 + dice.below(12);
    let mut parents: BTreeMap<u64, Option<u64>> = BTreeMap::new();
    for seq in 1..=count {
        let parent = (seq > 1 && dice.below(4) > 0).then(|| 1 + dice.below(seq - 1));
        parents.insert(seq, parent);
        take(&store, parent.map(|parent| id(&store, &frame(parent))), seq).unwrap();
    }
    let keep = 1 + dice.below(count);
    let mut kept: BTreeSet<u64> = BTreeSet::new();
    for seq in count - keep + 1..=count {
        kept.extend(std::iter::successors(Some(seq), |seq| parents[seq]));
    }
    let removed = store.retain("web", keep as usize).unwrap();
    assert_eq!(numbers(&store), kept.iter().copied().collect::<Vec<_>>());
    assert_eq!(removed.len() as u64 + kept.len() as u64, count);
    for (at, frame) in removed.iter().enumerate() {
        let parent = parents[&frame.seq()];
        assert!(!removed[..at].iter().any(|gone| Some(gone.seq()) == parent), "{frame} outlived its parent");
    }
    for &seq in &kept {
        let expected = std::iter::successors(Some(seq), |seq| parents[seq]).collect();
        assert_eq!(set(&store, &frame(seq)), expected);
    }
}

#[test]
fn retention_keeps_the_newest_and_all_they_need() {
    for seed in 0..60 {
        dice::showing(seed, || retention(seed));
    }
}

#[test]
fn newest_intact_goes_back_behind_a_broken_chain() {
    let (_dir, store) = store();
    chain(&store, 2);
    chain(&store, 3);
    let found = |expected: u64, skipped: usize| {
        let found = store.newest_intact("web").unwrap();
        assert_eq!((found.frame, found.skipped.len()), (frame(expected), skipped));
        assert!(found.skipped.iter().all(|skipped| skipped.error.kind() == Kind::Corrupt));
    };
    found(5, 0);
    damage(&store.path(&frame(4)));
    found(3, 2);
    damage(&store.path(&frame(3)));
    found(2, 3);
    fs::remove_file(store.path(&frame(1))).unwrap();
    assert_says(&store.newest_intact("web").unwrap_err(), Kind::Corrupt, &["none of the 4 frames", "web@5", "00000004.frame: index"]);
    assert!(matches!(store.lineage("web").unwrap().parent(&frame(2)), Some(Parent::Missing(_))));
}

#[test]
fn an_increment_is_not_committed_without_its_parent() {
    let (_dir, store) = store();
    let parent = take(&store, None, 0).unwrap();
    let gone = id(&store, &parent);
    let pending = store.begin("web").unwrap();
    let mut writer = pending.writer(&Header::new(Some(gone))).unwrap();
    writer.parent(0, 0, LEN, 0).unwrap();
    let written = writer.finish(b"{}").unwrap();
    assert_eq!(written.parent, Some(gone));
    store.remove(&parent).unwrap();
    let error = store.commit(pending, &written).unwrap_err();
    assert_says(&error, Kind::Refused, &[&gone.to_string(), "take a full frame"]);
    assert_eq!(numbers(&store), [0; 0]);
    let left: Vec<_> = store.root().join("web").read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".partial")), "{left:?}");
}

/// Commits increments upon whatever is newest; what was removed meanwhile is refused.
fn grow(store: &DirStore, taken: &AtomicUsize, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let parent = store.list(Some("web")).unwrap().pop().and_then(|frame| read_header(&store.path(&frame)).ok());
        match take(store, parent.map(|header| header.id), 7) {
            Ok(_) => drop(taken.fetch_add(1, Ordering::Relaxed)),
            Err(e) if e.kind() == Kind::Refused => {}
            Err(e) => panic!("{e}"),
        }
    }
}

/// Removes, keeps and compacts at random, until enough frames have come to be in between.
fn prune(store: &DirStore, taken: &AtomicUsize, seed: u64) {
    let mut dice = Dice(seed);
    let patience = Instant::now() + Duration::from_secs(120);
    while taken.load(Ordering::Relaxed) < 60 {
        assert!(Instant::now() < patience, "only {} frames were taken", taken.load(Ordering::Relaxed));
        let frames = store.list(Some("web")).unwrap();
        let Some(frame) = frames.get(dice.below(frames.len().max(1) as u64) as usize) else { continue };
        let done = match dice.below(4) {
            0 => store.remove_all(&frames[dice.below(frames.len() as u64) as usize..]),
            1 => store.remove(frame),
            2 => store.retain("web", 1 + dice.below(3) as usize).map(drop),
            _ => compact(&store.path(frame), Compression::None, &mut |_, _| {}).map(drop),
        };
        if let Err(e) = done {
            assert!([Kind::Refused, Kind::NotFound, Kind::Corrupt].contains(&e.kind()), "{e}");
        }
    }
}

#[test]
fn a_child_and_the_removal_of_its_parent_never_cross() {
    let (_dir, store) = store();
    take(&store, None, 0).unwrap();
    let (stop, taken) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let growers: Vec<_> = (0..2).map(|_| scope.spawn(|| grow(&store, &taken, &stop))).collect();
        let pruners: Vec<_> = (0..2).map(|seed| scope.spawn({ let (store, taken) = (&store, &taken); move || prune(store, taken, seed) })).collect();
        let pruned: Vec<_> = pruners.into_iter().map(|thread| thread.join()).collect();
        stop.store(true, Ordering::Relaxed);
        growers.into_iter().for_each(|thread| thread.join().unwrap());
        pruned.into_iter().for_each(|pruned| pruned.unwrap());
    });
    for frame in store.list(Some("web")).unwrap() {
        store.open(&frame).unwrap().verify(&mut |_, _| {}).unwrap();
    }
}

#[test]
fn a_compacted_frame_is_the_same_frame_upon_none() {
    let (_dir, store) = store();
    let frames = chain(&store, 4);
    let before: Vec<_> = frames.iter().map(|frame| (set(&store, frame), id(&store, frame))).collect();
    let Some(Compacted { frames: 3, bytes_before, bytes }) = compact(&store.path(&frame(3)), Compression::None, &mut |_, _| {}).unwrap() else { panic!("nothing was done") };
    assert!(bytes < bytes_before && bytes == store.path(&frame(3)).metadata().unwrap().len());
    assert_eq!(frames.iter().map(|frame| (set(&store, frame), id(&store, frame))).collect::<Vec<_>>(), before);
    assert_eq!(store.lineage("web").unwrap().chain(&frame(4)), [frame(4), frame(3)]);
    assert_eq!(compact(&store.path(&frame(3)), Compression::None, &mut |_, _| {}).unwrap(), None);
    assert_eq!(store.prune(&[frame(2), frame(1)]).unwrap(), [frame(2), frame(1)]);
    assert_eq!(set(&store, &frame(4)), before[3].0);
}

#[test]
fn pruning_stops_at_what_somebody_else_needs() {
    let (_dir, store) = store();
    chain(&store, 4);
    take(&store, Some(id(&store, &frame(2))), 9).unwrap();
    compact(&store.path(&frame(4)), Compression::None, &mut |_, _| {}).unwrap();
    assert_eq!(store.prune(&[frame(3), frame(2), frame(1)]).unwrap(), [frame(3)]);
    assert_eq!((numbers(&store), store.prune(&[]).unwrap()), (vec![1, 2, 4, 5], vec![]));
}

#[test]
fn a_frame_removed_while_it_is_compacted_stays_removed() {
    let (_dir, store) = store();
    chain(&store, 2);
    let path = store.path(&frame(2));
    let error = compact(&path, Compression::None, &mut |_, _| drop(fs::remove_file(&path))).unwrap_err();
    assert_says(&error, Kind::NotFound, &["was removed while it was rewritten"]);
    assert_eq!(numbers(&store), [1]);
}

#[test]
fn damage_below_is_said_and_nothing_is_replaced() {
    let (_dir, store) = store();
    chain(&store, 3);
    damage(&store.path(&frame(1)));
    let before = fs::read(store.path(&frame(3))).unwrap();
    let error = compact(&store.path(&frame(3)), Compression::Auto, &mut |_, _| {}).unwrap_err();
    assert_says(&error, Kind::Corrupt, &["00000001.frame: block 0"]);
    assert_eq!(fs::read(store.path(&frame(3))).unwrap(), before);
    let left = store.root().join("web").read_dir().unwrap().filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".partial"));
    assert_eq!(left.count(), 0);
}

#[test]
fn readers_see_a_whole_chain_while_it_is_compacted_and_pruned() {
    let (_dir, store) = store();
    for _ in 0..30 {
        let frames = chain(&store, 4);
        let newest = frames[3].clone();
        let (stop, expected) = (AtomicBool::new(false), set(&store, &newest));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(set(&store, &newest), expected);
                }
            });
            compact(&store.path(&frames[2]), Compression::None, &mut |_, _| {}).unwrap();
            store.prune(&[frames[1].clone(), frames[0].clone()]).unwrap();
            compact(&store.path(&newest), Compression::None, &mut |_, _| {}).unwrap();
            store.prune(&frames[2..3]).unwrap();
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        assert_eq!(Chain::open(&store.path(&newest)).unwrap().frames().len(), 1);
    }
}
