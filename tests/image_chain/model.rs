//! A plain model of frames: what was said of each page, and what a page of a chain holds in the end.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use stillframe::image::{encode, Chain, Compression, FrameId, FrameReader, FrameWriter, Header, Place, RunInBlock, Source, Written};

use crate::dice::Dice;

pub const PAGE: u64 = 64;
pub const PAGES: u64 = 60;
/// Objects a frame may have.
const OBJECTS: u32 = 3;

/// What a frame is to hold of a page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Page {
    Data(u8),
    Zero,
    Parent(u32),
}

/// By object and number of the page.
pub type Pages = BTreeMap<(u32, u64), Page>;

/// What was said of a page, by generation; the parent's is none.
type Said = BTreeMap<(u32, u64), BTreeMap<Option<u32>, Page>>;

/// Hands in one generation: one page in `sparse` of those there are, in any order, several to a block.
fn round(writer: &mut FrameWriter, said: &mut Said, generation: u32, sparse: u64, dice: &mut Dice) {
    let all = (0..OBJECTS).flat_map(|object| (0..PAGES).map(move |page| (object, page)));
    let mut order: Vec<(u32, u64)> = all.filter(|_| dice.below(sparse) == 0).collect();
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
    for object in 0..OBJECTS {
        let (mut page, gap) = (dice.below(5), 1 + dice.below(6));
        while page < PAGES {
            let (len, theirs) = ((1 + dice.below(20)).min(PAGES - page), dice.below(u64::from(OBJECTS) + 1) as u32);
            writer.parent(object, page * PAGE, len * PAGE, theirs).unwrap();
            for page in page..page + len {
                said.entry((object, page)).or_default().insert(None, Page::Parent(theirs));
            }
            page += len + dice.below(gap);
        }
    }
}

/// Cuts an object to random ranges, or drops it.
fn clip(writer: &mut FrameWriter, said: &mut Said, dice: &mut Dice) {
    let object = dice.below(u64::from(OBJECTS) + 1) as u32;
    let (mut live, mut page) = (Vec::new(), dice.below(10));
    while page < PAGES && dice.below(6) > 0 {
        let end = page + 1 + dice.below(20);
        live.push((page * PAGE, end * PAGE));
        page = end + dice.below(5);
    }
    writer.clip(object, &live).unwrap();
    said.retain(|&(other, page), _| other != object || live.iter().any(|&(start, end)| (start..end).contains(&(page * PAGE))));
}

/// Writes a random frame, and says what it is to hold.
pub fn write(path: &Path, parent: Option<FrameId>, dice: &mut Dice) -> (FrameId, Written, Pages) {
    let header = Header::new(parent);
    let mut writer = FrameWriter::create(fs::File::create(path).unwrap(), path, &header).unwrap();
    let mut said = Said::new();
    if parent.is_some() {
        inherit(&mut writer, &mut said, dice);
    }
    let mut generations: Vec<u32> = (0..dice.below(5) as u32).map(|n| n * 1000).collect();
    dice.shuffle(&mut generations);
    let sparse = 2 + dice.below(20);
    generations.into_iter().for_each(|generation| round(&mut writer, &mut said, generation, sparse, dice));
    if dice.below(3) == 0 {
        clip(&mut writer, &mut said, dice);
    }
    let written = writer.finish(header.id.to_string().as_bytes()).unwrap();
    (header.id, written, said.into_iter().map(|(key, said)| (key, *said.values().next_back().unwrap())).collect())
}

/// What a frame holds once its parent is known.
pub fn resolve(own: &Pages, parent: &Pages) -> Pages {
    let find = |(&(object, number), &page): (&(u32, u64), &Page)| match page {
        Page::Parent(theirs) => parent.get(&(theirs, number)).map(|&page| ((object, number), page)),
        page => Some(((object, number), page)),
    };
    own.iter().filter_map(find).collect()
}

/// Numbers of the pages that a stretch covers.
fn covered(offset: u64, len: u64) -> impl Iterator<Item = u64> {
    assert_eq!((offset % PAGE, len % PAGE), (0, 0));
    offset / PAGE..(offset + len) / PAGE
}

fn data(read: impl Fn(&mut [u8])) -> Page {
    let mut bytes = [0; PAGE as usize];
    read(&mut bytes);
    assert_eq!(bytes, [bytes[0]; PAGE as usize]);
    Page::Data(bytes[0])
}

/// The pages of a file, by its runs.
pub fn of_file(reader: &FrameReader) -> Pages {
    let mut found = Pages::new();
    for object in reader.objects() {
        for run in reader.runs(object) {
            for number in covered(run.offset, run.len) {
                let page = match run.place {
                    Place::Parent { object } => Page::Parent(object),
                    Place::Zero => Page::Zero,
                    Place::Data { .. } => data(|bytes| reader.read_at(object, number * PAGE, bytes).unwrap()),
                };
                assert_eq!(found.insert((object, number), page), None, "a page has two runs");
            }
        }
    }
    found
}

/// The pages of a chain, by its pieces.
pub fn of_chain(chain: &Chain) -> Pages {
    let mut found = Pages::new();
    let objects: Vec<u32> = chain.objects().collect();
    for piece in objects.iter().flat_map(|&object| chain.runs(object)) {
        for number in covered(piece.offset, piece.len) {
            let page = match piece.source {
                Source::Zero => Page::Zero,
                Source::Data { .. } => data(|bytes| chain.read_at(piece.object, number * PAGE, bytes).unwrap()),
            };
            assert_eq!(found.insert((piece.object, number), page), None, "a page has two pieces");
        }
    }
    assert!(chain.pieces().windows(2).all(|pair| (pair[0].object, pair[0].end()) <= (pair[1].object, pair[1].offset) || pair[0].object < pair[1].object));
    found
}
