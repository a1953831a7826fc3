//! Links of a chain made full, one after the other, against the model.

use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::Path;

use stillframe::image::{encode, Chain, Compression, FrameReader, FrameWriter, Header, RunInBlock, BLOCK_MAX};
use stillframe::store::compact;
use stillframe::Kind;

use crate::dice::{self, Dice};
use crate::links::{chain, path};
use crate::model;

fn case(dir: &Path, seed: u64) {
    let mut dice = Dice(seed);
    let links = 1 + dice.below(8) as usize;
    let contents = chain(dir, links, &mut dice);
    let mut order: Vec<usize> = (1..=links).collect();
    dice.shuffle(&mut order);
    for &number in &order {
        let how = [Compression::None, Compression::Zstd(1), Compression::Auto][dice.below(3) as usize];
        let manifest = FrameReader::open(&path(dir, number)).unwrap().manifest().to_vec();
        compact(&path(dir, number), how, &mut |done, total| assert!(done <= total)).unwrap();
        let full = Chain::open(&path(dir, number)).unwrap();
        assert!(full.is_compact() && full.frames().len() == 1 && full.manifest() == manifest);
        for (other, content) in contents.iter().enumerate().skip(1) {
            let chain = Chain::open(&path(dir, other)).unwrap();
            assert_eq!(model::of_chain(&chain), *content, "frame {other} of {links} after {number} in {order:?}");
            chain.verify(&mut |_, _| {}).unwrap();
        }
    }
    (1..=links).for_each(|number| fs::remove_file(path(dir, number)).unwrap());
}

#[test]
fn compaction_changes_no_content() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..80 {
        dice::showing(seed, || case(dir.path(), seed));
    }
}

fn writer(path: &Path, header: &Header) -> FrameWriter {
    FrameWriter::create(fs::File::create(path).unwrap(), path, header).unwrap()
}

/// A full frame of `blocks` blocks, of which every third page was written a second time.
fn with_dead_weight(path: &Path, blocks: u64) -> Vec<u8> {
    let mut dice = Dice(5);
    let header = Header::new(None);
    let mut writer = writer(path, &header);
    let mut content = dice.bytes(blocks as usize * BLOCK_MAX);
    writer.put(0, 0, &content, Compression::None).unwrap();
    for (number, page) in content.chunks_mut(4096).enumerate().step_by(3) {
        page.copy_from_slice(&dice.bytes(4096));
        let run = RunInBlock { object: 0, offset: number as u64 * 4096, at: 0, len: 4096, generation: 1 };
        writer.append(&encode(page, Compression::None).unwrap(), &[run]).unwrap();
    }
    writer.finish(b"{}").unwrap();
    content
}

#[test]
fn dead_weight_goes_and_blocks_of_use_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let path = path(dir.path(), 1);
    let content = with_dead_weight(&path, 5);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(!Chain::open(&path).unwrap().is_compact());
    let done = compact(&path, Compression::None, &mut |_, _| {}).unwrap().unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((done.frames, done.bytes, meta.permissions().mode() & 0o777), (1, meta.len(), 0o640));
    // A third of the pages had been there twice; what is left pays for an index and a few headers.
    assert!(done.bytes < content.len() as u64 + 64_000 && done.bytes_before > content.len() as u64 * 13 / 10);
    let mut read = vec![0; content.len()];
    let chain = Chain::open(&path).unwrap();
    chain.read_at(0, 0, &mut read).unwrap();
    assert!(read == content);
    assert_eq!(compact(&path, Compression::Zstd(19), &mut |_, _| {}).unwrap(), None);
}

#[test]
fn bytes_that_objects_share_stay_shared() {
    let dir = tempfile::tempdir().unwrap();
    let base = Header::new(None);
    let mut first = writer(&path(dir.path(), 1), &base);
    let content = Dice(2).bytes(100_000);
    first.put(1, 0, &content, Compression::None).unwrap();
    first.finish(b"").unwrap();
    let mut second = writer(&path(dir.path(), 2), &Header::new(Some(base.id)));
    second.parent(1, 0, 60_000, 1).unwrap();
    second.parent(2, 20_000, 70_000, 1).unwrap();
    second.parent(3, 30_000, 10, 1).unwrap();
    second.finish(b"").unwrap();
    let done = compact(&path(dir.path(), 2), Compression::None, &mut |_, _| {}).unwrap().unwrap();
    assert!((90_000..91_000).contains(&done.bytes), "{done:?}");
    let chain = Chain::open(&path(dir.path(), 2)).unwrap();
    for (object, start, end) in [(1, 0, 60_000), (2, 20_000, 90_000), (3, 30_000, 30_010)] {
        let mut read = vec![0; end - start];
        chain.read_at(object, start as u64, &mut read).unwrap();
        assert!(read == content[start..end], "object {object}");
    }
    assert!(chain.is_compact());
}

#[test]
fn links_to_frames_are_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    with_dead_weight(&path(dir.path(), 1), 1);
    let link = dir.path().join("link.frame");
    symlink(path(dir.path(), 1), &link).unwrap();
    let error = compact(&link, Compression::None, &mut |_, _| {}).unwrap_err();
    assert!(error.kind() == Kind::Usage && error.to_string().contains("symbolic link"), "{error}");
    assert!(link.is_symlink());
}
