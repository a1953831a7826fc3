//! The transfer: whatever is fed, in whatever pieces and order, is what the frame holds; and a failure anywhere ends it all.

mod arena;
mod bounds;
#[path = "../dice/mod.rs"]
#[allow(dead_code)] // every test binary uses its part
mod dice;
mod failures;
#[path = "../kit/mod.rs"]
#[allow(dead_code)] // every test binary uses its part
mod kit;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stillframe::image::{Compression, FrameReader, FrameWriter, Header};
use stillframe::resource::contents::Content;
use stillframe::sys::PAGE;
use stillframe::transfer::{self, Feed, How, Totals};
use stillframe::Result;

use arena::Arena;
use dice::Dice;

/// A page of zeros, of zeros but for one byte, of text or of noise.
fn page(dice: &mut Dice) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    match dice.below(4) {
        0 => {}
        1 => page[dice.below(PAGE) as usize] = 1,
        2 => page.chunks_mut(8).for_each(|word| word.fill(b'a' + dice.below(3) as u8)),
        _ => page.chunks_mut(8).for_each(|word| word.copy_from_slice(&dice.next().to_le_bytes())),
    }
    page
}

/// Runs a transfer into a frame of its own, and gives what is in it.
pub fn frame<T>(path: &Path, how: &How, produce: impl FnOnce(&mut Feed<'_>) -> Result<T>) -> Result<(Totals, T, FrameReader)> {
    let file = std::fs::File::create(path).unwrap();
    let mut writer = FrameWriter::create(file, path, &Header::new(None))?;
    let (totals, value) = transfer::run(&mut writer, how, produce)?;
    writer.finish(b"{}")?;
    let reader = FrameReader::open(path)?;
    reader.verify(&mut |_, _| {})?;
    Ok((totals, value, reader))
}

/// A directory that goes away, and a path in it.
pub fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.frame");
    (dir, path)
}

/// What the frame should hold: pages of objects by number and offset.
type Model = BTreeMap<(u32, u64), Vec<u8>>;

fn compare(reader: &FrameReader, model: &Model, seed: u64) {
    let mut held = Model::new();
    for object in reader.objects() {
        for run in reader.runs(object) {
            let mut bytes = vec![0; run.len as usize];
            reader.read_at(object, run.offset, &mut bytes).unwrap();
            held.extend((run.offset..).step_by(PAGE as usize).zip(bytes.chunks(PAGE as usize)).map(|(offset, page)| ((object, offset), page.to_vec())));
        }
    }
    assert!(held.keys().eq(model.keys()), "seed {seed}: the frame holds other pages than it was fed");
    if let Some((key, _)) = model.iter().find(|(key, page)| held[key] != **page) {
        panic!("seed {seed}: object {} differs at {:#x}", key.0, key.1);
    }
}

/// One generation: disjoint stretches of the arena, copied as memory, as memory of a running process or as bytes.
fn feed_generation(feed: &mut Feed<'_>, arena: &mut Arena, generation: u32, dice: &mut Dice, model: &mut Model) -> Result<()> {
    let object = dice.below(3) as u32;
    let mut ranges = Vec::new();
    let mut at = dice.below(4);
    while at < arena.pages() {
        let len = (1 + dice.below(40)).min(arena.pages() - at);
        for number in at..at + len {
            let bytes = page(dice);
            arena.set(number, &bytes);
            model.insert((object, arena.address(number)), bytes);
        }
        ranges.push((arena.address(at), arena.address(at + len)));
        at += len + 1 + dice.below(20);
    }
    match dice.below(3) {
        0 => feed.memory(object, &arena.memory, &ranges, generation)?,
        1 => assert_eq!(feed.memory_of_running(object, &arena.memory, &ranges, generation, true)?, []),
        _ => ranges.iter().try_for_each(|&(start, end)| feed.bytes(object, start, &arena.bytes(start, end), generation))?,
    }
    if dice.below(2) == 0 {
        feed.flush()?;
    }
    Ok(())
}

#[test]
fn any_sequence_of_feeds_gives_what_was_fed_last() {
    let (_dir, path) = scratch();
    for seed in 0..16 {
        let mut dice = Dice(seed);
        let mut arena = Arena::new(700);
        let mut model = Model::new();
        let compression = [Compression::None, Compression::Zstd(1), Compression::Auto][dice.below(3) as usize];
        let how = How { compression, ..How::default() };
        let (totals, (), reader) = frame(&path, &how, |feed| {
            (0..1 + dice.below(8) as u32).try_for_each(|generation| feed_generation(feed, &mut arena, generation, &mut dice, &mut model))
        })
        .unwrap();
        compare(&reader, &model, seed);
        assert!(totals.pages + totals.zero_pages >= model.len() as u64, "seed {seed}: {totals:?}");
    }
}

#[test]
fn settled_bytes_are_in_the_file() {
    let (_dir, path) = scratch();
    let mut dice = Dice(1);
    let pages: Vec<Vec<u8>> = (0..300).map(|_| page(&mut dice)).collect();
    let all = pages.concat();
    let (totals, written, _) = frame(&path, &How { compression: Compression::None, ..How::default() }, |feed| {
        let before = feed.written();
        feed.bytes(0, 0, &all, 0)?;
        feed.settle()?;
        feed.settle()?;
        Ok(feed.written() - before)
    })
    .unwrap();
    assert_eq!(written, totals.stored_bytes);
    let zeros = pages.iter().filter(|page| page.iter().all(|&byte| byte == 0)).count() as u64;
    assert_eq!((totals.pages, totals.zero_pages), (300 - zeros, zeros));
    assert_eq!(totals.raw_bytes, (300 - zeros) * PAGE);
}

#[test]
fn saved_files_keep_their_holes_and_odd_ends() {
    use std::os::unix::fs::FileExt;
    let (dir, path) = scratch();
    let file = tempfile::tempfile_in(dir.path()).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(&[7; 5000], 9 << 20).unwrap();
    let len = (9 << 20) + 5000;
    let content = Content { object: 4, file, len, base: 0x1000 };
    let (_, (), reader) = frame(&path, &How::default(), |feed| feed.content(&content)).unwrap();
    let mut bytes = vec![0; 5];
    reader.read_at(4, 0x1000, &mut bytes).unwrap();
    assert_eq!(bytes, b"start");
    let mut bytes = vec![0; 5000];
    reader.read_at(4, 0x1000 + (9 << 20), &mut bytes).unwrap();
    assert_eq!(bytes, [7; 5000]);
    assert_eq!(reader.runs(4).map(|run| run.end()).max(), Some(0x1000 + len));
    assert!(reader.runs(4).map(|run| run.len).sum::<u64>() < 1 << 20);
}
