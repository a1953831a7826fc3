//! Frames that build upon others, read as one; and chains that are not what they should be.

use std::fs;
use std::path::{Path, PathBuf};

use stillframe::image::{Block, BlockId, Chain, Compression, FrameId, FrameReader, FrameWriter, Header, Source, Verifier};
use stillframe::{Kind, Result};

use crate::dice::{self, Dice};
use crate::model::{self, Pages, PAGE, PAGES};

/// The file of link `number`, counted from 1 for the oldest.
pub fn path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("{number:08}.frame"))
}

/// Writes a chain of random frames, and says what each holds in the end.
pub fn chain(dir: &Path, links: usize, dice: &mut Dice) -> Vec<Pages> {
    let (mut parent, mut contents) = (None, vec![Pages::new()]);
    for number in 1..=links {
        let (id, _, own) = model::write(&path(dir, number), parent, dice);
        contents.push(model::resolve(&own, &contents[number - 1]));
        parent = Some(id);
    }
    contents
}

fn case(dir: &Path, seed: u64) {
    let mut dice = Dice(seed);
    let links = 1 + dice.below(8) as usize;
    for (number, content) in chain(dir, links, &mut dice).iter().enumerate().skip(1) {
        let chain = Chain::open(&path(dir, number)).unwrap();
        assert_eq!(model::of_chain(&chain), *content, "frame {number} of {links}");
        assert_eq!((chain.frames().len(), chain.manifest()), (number, chain.header().id.to_string().as_bytes()));
    }
    (1..=links).for_each(|number| fs::remove_file(path(dir, number)).unwrap());
}

#[test]
fn chains_hold_what_a_model_says() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..300 {
        dice::showing(seed, || case(dir.path(), seed));
    }
}

#[test]
fn a_hundred_increments_are_read_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(100);
    let object: u64 = 1 << 20;
    let mut content = dice.bytes(object as usize);
    let base = Header::new(None);
    let mut writer = writer(&path(dir.path(), 1), &base);
    writer.put(0, 0, &content, Compression::Auto).unwrap();
    writer.finish(b"").unwrap();
    let mut parent = base.id;
    for number in 2..=100 {
        let header = Header::new(Some(parent));
        let mut writer = self::writer(&path(dir.path(), number), &header);
        writer.parent(0, 0, object, 0).unwrap();
        let mut offset = dice.below(200_000);
        while offset < object - 10_000 {
            let len = 1 + dice.below(9_999) as usize;
            let fresh = dice.bytes(len);
            writer.put(0, offset, &fresh, Compression::Auto).unwrap();
            content[offset as usize..offset as usize + len].copy_from_slice(&fresh);
            offset += len as u64 + dice.below(200_000);
        }
        writer.finish(b"").unwrap();
        parent = header.id;
    }
    let chain = Chain::open(&path(dir.path(), 100)).unwrap();
    let mut read = vec![0; object as usize];
    chain.read_at(0, 0, &mut read).unwrap();
    assert!(read == content);
    let verified = chain.verify(&mut |_, _| {}).unwrap();
    assert_eq!((verified.frames, verified.bytes), (100, chain.bytes()));
    let files: u64 = (1..=100).map(|number| fs::metadata(path(dir.path(), number)).unwrap().len()).sum();
    assert_eq!(chain.bytes(), files);
    assert_eq!(chain.read_at(0, object - 1, &mut [0; 2]).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(chain.read_block(BlockId { frame: 100, block: 0 }, &mut Block::default()).unwrap_err().kind(), Kind::Usage);
}

fn writer(path: &Path, header: &Header) -> FrameWriter {
    FrameWriter::create(fs::File::create(path).unwrap(), path, header).unwrap()
}

/// Writes a frame that holds `object` as `parent` has it, and one page of its own.
fn link(path: &Path, header: &Header, object: u32) {
    let mut writer = writer(path, header);
    if header.parent.is_some() {
        writer.parent(object, 0, PAGES * PAGE, object).unwrap();
    }
    writer.put(object, 0, &[7; PAGE as usize], Compression::None).unwrap();
    writer.finish(b"{}").unwrap();
}

/// Three links, whose headers it returns.
fn three(dir: &Path) -> Vec<Header> {
    let mut headers = vec![Header::new(None)];
    (0..2).for_each(|n| headers.push(Header::new(Some(headers[n].id))));
    (1..).zip(&headers).for_each(|(number, header)| link(&path(dir, number), header, 1));
    headers
}

fn says(opened: Result<Chain>, words: &[&str]) {
    let error = opened.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), Kind::Corrupt, "{text}");
    assert!(!text.contains('\n') && words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn files_are_known_by_their_ids_and_not_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path());
    let swapped = dir.path().join("swap");
    fs::rename(path(dir.path(), 1), &swapped).unwrap();
    fs::rename(path(dir.path(), 3), path(dir.path(), 1)).unwrap();
    fs::rename(&swapped, dir.path().join("old frame.frame")).unwrap();
    // What is no frame, and copies of what is one, are in nobody's way.
    fs::write(dir.path().join("0.frame"), "").unwrap();
    fs::create_dir(dir.path().join("00000000.frame")).unwrap();
    fs::copy(path(dir.path(), 2), dir.path().join("copy.frame")).unwrap();
    assert_eq!(Chain::open(&path(dir.path(), 1)).unwrap().frames().len(), 3);
    assert_eq!(Chain::open(&dir.path().join("copy.frame")).unwrap().frames().len(), 2);
}

#[test]
fn a_missing_link_is_named_with_the_frame_that_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let headers = three(dir.path());
    let id = headers[0].id.to_string();
    let hidden = dir.path().join(".1.frame");
    fs::rename(path(dir.path(), 1), &hidden).unwrap();
    says(Chain::open(&path(dir.path(), 3)), &["00000002.frame builds upon frame", &id, "not in", "put the file of that frame back"]);
    // Its place is taken by another frame, or by itself with a damaged header.
    link(&path(dir.path(), 1), &Header::new(None), 1);
    says(Chain::open(&path(dir.path(), 3)), &[&id, "not in"]);
    let mut bytes = fs::read(&hidden).unwrap();
    bytes[40] ^= 1;
    fs::write(path(dir.path(), 1), bytes).unwrap();
    says(Chain::open(&path(dir.path(), 3)), &[&id, "unless it is", "00000001.frame, whose header is damaged"]);
    fs::rename(&hidden, path(dir.path(), 1)).unwrap();
    Chain::open(&path(dir.path(), 3)).unwrap();
}

#[test]
fn a_damaged_link_is_named() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path());
    let whole = fs::read(path(dir.path(), 1)).unwrap();
    for at in 96..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(path(dir.path(), 1), bytes).unwrap();
        let error = Chain::open(&path(dir.path(), 3)).and_then(|chain| chain.verify(&mut |_, _| {}).map(|_| chain));
        says(error, &["00000001.frame"]);
    }
    fs::write(path(dir.path(), 1), &whole[..whole.len() - 1]).unwrap();
    says(Chain::open(&path(dir.path(), 2)), &["00000002.frame builds upon another", "00000001.frame", "damaged"]);
}

#[test]
fn circles_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ids = [FrameId::generate(), FrameId::generate()];
    for (number, own, parent) in [(1, 0, 1), (2, 1, 0)] {
        link(&path(dir.path(), number), &Header { id: ids[own], ..Header::new(Some(ids[parent])) }, 1);
    }
    says(Chain::open(&path(dir.path(), 2)), &["builds upon itself"]);
    let own = FrameId::generate();
    link(&path(dir.path(), 3), &Header { id: own, ..Header::new(Some(own)) }, 1);
    says(Chain::open(&path(dir.path(), 3)), &["builds upon itself"]);
}

#[test]
fn machines_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let base = Header { arch: 8, ..Header::new(None) };
    link(&path(dir.path(), 1), &base, 1);
    link(&path(dir.path(), 2), &Header::new(Some(base.id)), 1);
    says(Chain::open(&path(dir.path(), 2)), &["00000002.frame builds upon another", "00000001.frame", "machine"]);
}

#[test]
fn what_was_dropped_stays_dropped_and_zero_stays_zero() {
    let dir = tempfile::tempdir().unwrap();
    let base = Header::new(None);
    let mut first = writer(&path(dir.path(), 1), &base);
    first.put(5, 0, &[1; 4000], Compression::None).unwrap();
    first.finish(b"").unwrap();
    let header = Header::new(Some(base.id));
    let mut second = writer(&path(dir.path(), 2), &header);
    second.parent(8, 0, 1000, 5).unwrap();
    second.zero(8, 1000, 1000, 0).unwrap();
    second.parent(8, 3000, 9000, 5).unwrap();
    second.parent(9, 0, 100, 77).unwrap();
    second.finish(b"").unwrap();
    let chain = Chain::open(&path(dir.path(), 2)).unwrap();
    let seen: Vec<(u64, u64, bool)> = chain.runs(8).iter().map(|piece| (piece.offset, piece.end(), piece.source == Source::Zero)).collect();
    assert_eq!(seen, [(0, 1000, false), (1000, 2000, true), (3000, 4000, false)]);
    assert_eq!(chain.objects().collect::<Vec<_>>(), [8]);
    assert_eq!(chain.read_at(8, 2000, &mut [0]).unwrap_err().kind(), Kind::NotFound);
    let alone = FrameReader::open(&path(dir.path(), 2)).unwrap();
    assert!(alone.read_at(8, 0, &mut [0]).unwrap_err().to_string().contains("its parent holds"));
}

#[test]
fn a_verifier_reads_each_file_once_and_remembers_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path());
    let mut verifier = Verifier::default();
    let mut read = |number| {
        let (mut steps, chain) = (Vec::new(), Chain::open(&path(dir.path(), number)).unwrap());
        verifier.verify(&chain, &mut |done, total| steps.push((done, total))).map(|verified| (verified, steps))
    };
    let (verified, steps) = read(2).unwrap();
    assert_eq!(verified.frames, 2);
    assert!(steps.windows(2).all(|pair| pair[0].0 <= pair[1].0) && steps.last().unwrap().0 == steps[0].1, "{steps:?}");
    let (verified, steps) = read(3).unwrap();
    let one = fs::metadata(path(dir.path(), 3)).unwrap().len();
    assert!(verified.frames == 3 && steps[0].1 < one, "only the newest is new");
    let mut bytes = fs::read(path(dir.path(), 1)).unwrap();
    bytes[120] ^= 1;
    fs::write(path(dir.path(), 1), bytes).unwrap();
    assert!(read(1).is_ok(), "it was read before");
    let mut fresh = Verifier::default();
    for number in [3, 1, 2] {
        let error = fresh.verify(&Chain::open(&path(dir.path(), number)).unwrap(), &mut |_, _| {}).unwrap_err();
        assert!(error.kind() == Kind::Corrupt && error.to_string().contains("00000001.frame: block 0"), "{error}");
    }
}
