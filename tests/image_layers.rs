//! Rounds of writing against a plain model: whatever was said of a page last is what the frame holds of it.

#[allow(dead_code)]
mod dice;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dice::Dice;
use stillframe::image::{encode, Compression, FrameId, FrameReader, FrameWriter, Header, Place, RunInBlock};
use stillframe::Kind;

const PAGE: u64 = 64;
const PAGES: u64 = 60;

/// What a frame is to hold of a page.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Page {
    Data(u8),
    Zero,
    Parent(u32),
}

/// What was said of a page, by object, number and generation; the parent's is none.
type Said = BTreeMap<(u32, u64), BTreeMap<Option<u32>, Page>>;

/// Hands in one generation: stretches of pages in any order, several to a block.
fn round(writer: &mut FrameWriter, said: &mut Said, generation: u32, dice: &mut Dice) {
    let mut order: Vec<(u32, u64)> = (0..2).flat_map(|object| (0..PAGES).map(move |page| (object, page))).filter(|_| dice.below(4) == 0).collect();
    dice.shuffle(&mut order);
    for pages in order.chunks(7) {
        let (mut raw, mut runs) = (Vec::new(), Vec::new());
        for &(object, number) in pages {
            let page = if dice.below(4) == 0 { Page::Zero } else { Page::Data(1 + dice.below(255) as u8) };
            assert!(said.entry((object, number)).or_default().insert(Some(generation), page).is_none());
            match page {
                Page::Data(byte) => {
                    runs.push(RunInBlock { object, offset: number * PAGE, at: raw.len() as u32, len: PAGE as u32, generation });
                    raw.extend([byte; PAGE as usize]);
                }
                _ => writer.zero(object, number * PAGE, PAGE, generation).unwrap(),
            }
        }
        if !raw.is_empty() {
            writer.append(&encode(&raw, Compression::None).unwrap(), &runs).unwrap();
        }
    }
}

/// Says of random stretches that the parent holds them.
fn inherit(writer: &mut FrameWriter, said: &mut Said, dice: &mut Dice) {
    for object in 0..2 {
        let mut page = dice.below(5);
        while page < PAGES {
            let (len, theirs) = ((1 + dice.below(8)).min(PAGES - page), dice.below(3) as u32);
            writer.parent(object, page * PAGE, len * PAGE, theirs).unwrap();
            for page in page..page + len {
                said.entry((object, page)).or_default().insert(None, Page::Parent(theirs));
            }
            page += len + dice.below(6);
        }
    }
}

/// Cuts an object to random ranges, or drops it.
fn clip(writer: &mut FrameWriter, said: &mut Said, dice: &mut Dice) {
    let object = dice.below(3) as u32;
    let (mut live, mut page) = (Vec::new(), dice.below(10));
    while page < PAGES && dice.below(6) > 0 {
        let end = page + 1 + dice.below(10);
        live.push((page * PAGE, end * PAGE));
        page = end + dice.below(5);
    }
    writer.clip(object, &live).unwrap();
    said.retain(|&(other, page), _| other != object || live.iter().any(|&(start, end)| (start..end).contains(&(page * PAGE))));
}

/// Pages of a frame, taken from its runs.
fn pages(reader: &FrameReader) -> BTreeMap<(u32, u64), Page> {
    let mut found = BTreeMap::new();
    for object in reader.objects() {
        for run in reader.runs(object) {
            assert_eq!((run.offset % PAGE, run.len % PAGE), (0, 0));
            for offset in (run.offset..run.end()).step_by(PAGE as usize) {
                let page = match run.place {
                    Place::Parent { object } => Page::Parent(object),
                    Place::Zero => Page::Zero,
                    Place::Data { .. } => {
                        let mut bytes = [0; PAGE as usize];
                        reader.read_at(object, offset, &mut bytes).unwrap();
                        assert_eq!(bytes, [bytes[0]; PAGE as usize]);
                        Page::Data(bytes[0])
                    }
                };
                assert_eq!(found.insert((object, offset / PAGE), page), None, "a page has two runs");
            }
        }
    }
    found
}

fn case(path: &Path, seed: u64) {
    let mut dice = Dice(seed);
    let header = Header::new((seed % 3 > 0).then(FrameId::generate));
    let mut writer = FrameWriter::create(fs::File::create(path).unwrap(), path, &header).unwrap();
    let mut said = Said::new();
    if header.parent.is_some() {
        inherit(&mut writer, &mut said, &mut dice);
    }
    let mut generations: Vec<u32> = (0..dice.below(5) as u32).map(|n| n * 1000).collect();
    dice.shuffle(&mut generations);
    generations.into_iter().for_each(|generation| round(&mut writer, &mut said, generation, &mut dice));
    if dice.below(2) == 0 {
        clip(&mut writer, &mut said, &mut dice);
    }
    let written = writer.finish(b"{}").unwrap();
    let expected: BTreeMap<(u32, u64), Page> = said.into_iter().map(|(key, said)| (key, *said.values().next_back().unwrap())).collect();
    let reader = FrameReader::open(path).unwrap();
    assert_eq!(pages(&reader), expected);
    let bytes = |kind: fn(&Page) -> bool| expected.values().filter(|page| kind(page)).count() as u64 * PAGE;
    assert_eq!(written.data_bytes, bytes(|page| matches!(page, Page::Data(_))));
    assert_eq!(written.zero_bytes, bytes(|page| matches!(page, Page::Zero)));
    assert_eq!(written.parent_bytes, bytes(|page| matches!(page, Page::Parent(_))));
    assert_eq!((written.parent, written.dead_bytes), (header.parent, dead(&reader)));
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
        let path = dir.path().join("1.frame");
        dice::showing(seed, || case(&path, seed));
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
