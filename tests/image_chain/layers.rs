//! Rounds of writing: whatever was said of a page last is what the frame holds of it.

use std::fs;
use std::path::Path;

use stillframe::image::{Compression, FrameId, FrameReader, FrameWriter, Header, Place};
use stillframe::Kind;

use crate::dice::{self, Dice};
use crate::model::{self, Page, PAGE};

fn case(path: &Path, seed: u64) {
    let mut dice = Dice(seed);
    let parent = (dice.below(3) > 0).then(FrameId::generate);
    let (_, written, expected) = model::write(path, parent, &mut dice);
    let reader = FrameReader::open(path).unwrap();
    assert_eq!(model::of_file(&reader), expected);
    let bytes = |kind: fn(&Page) -> bool| expected.values().filter(|page| kind(page)).count() as u64 * PAGE;
    assert_eq!(written.data_bytes, bytes(|page| matches!(page, Page::Data(_))));
    assert_eq!(written.zero_bytes, bytes(|page| matches!(page, Page::Zero)));
    assert_eq!(written.parent_bytes, bytes(|page| matches!(page, Page::Parent(_))));
    assert_eq!((written.parent, written.dead_bytes), (parent, dead(&reader)));
    reader.verify(&mut |_, _| {}).unwrap();
}

/// Bytes of the file in blocks that no run refers to.
fn dead(reader: &FrameReader) -> u64 {
    let lives = |block: u32| reader.objects().any(|object| reader.runs(object).any(|run| matches!(run.place, Place::Data { block: other, .. } if other == block)));
    (0..).zip(reader.blocks()).filter(|(block, _)| !lives(*block)).map(|(_, entry)| entry.file_len()).sum()
}

#[test]
fn frames_hold_what_was_said_last() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..400 {
        dice::showing(seed, || case(&dir.path().join("1.frame"), seed));
    }
}

#[test]
fn a_page_given_twice_in_one_generation_is_refused_however_it_is_covered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.frame");
    let mut writer = FrameWriter::create(fs::File::create(&path).unwrap(), &path, &Header::new(None)).unwrap();
    writer.zero(0, 0, 100, 3).unwrap();
    writer.put(0, 50, &[1; 100], Compression::None).unwrap();
    writer.zero(0, 99, 1, 3).unwrap();
    writer.zero(0, 0, 1000, 4).unwrap();
    let error = writer.finish(b"").unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains("at 0x63 twice"), "{error}");
}
