//! Frames as bytes: what goes in comes out, and nothing damaged passes for whole.

#[allow(dead_code)]
mod dice;

use std::fs;
use std::path::{Path, PathBuf};

use dice::Dice;
use stillframe::image::{
    encode, Block, Compression, FrameId, FrameReader, FrameWriter, Header, Place, RunInBlock, BLOCK_MAX, HEADER_LEN,
};
use stillframe::{Kind, Result};

fn writer(path: &Path) -> FrameWriter {
    FrameWriter::create(fs::File::create(path).unwrap(), path, &Header::new(None)).unwrap()
}

/// Everything a reader can check about a file.
fn check(path: &Path) -> Result<()> {
    FrameReader::open(path)?.verify(&mut |_, _| {}).map(drop)
}

/// A frame with raw and compressed blocks, zero runs and a parent.
fn small_frame(dir: &Path) -> PathBuf {
    let path = dir.join("small.frame");
    let header = Header::new(Some(FrameId::generate()));
    let mut writer = FrameWriter::create(fs::File::create(&path).unwrap(), &path, &header).unwrap();
    writer.put(1, 0, &[7; 4096], Compression::Zstd(1)).unwrap();
    writer.put(1, 4096, &Dice(3).bytes(300), Compression::None).unwrap();
    writer.zero(2, 0, 1 << 30, 0).unwrap();
    writer.parent(2, 1 << 30, 1 << 20, 4).unwrap();
    // A page written twice, and with it a block that is dead.
    writer.append(&encode(&[9; 300], Compression::None).unwrap(), &[RunInBlock { object: 1, offset: 4096, at: 0, len: 300, generation: 1 }]).unwrap();
    writer.put(3, 5, b"odd", Compression::Auto).unwrap();
    writer.finish(br#"{"pid": 1, "words": "words words words words words words words"}"#).unwrap();
    path
}

/// One random object: its bytes, and which of them the frame was told are zero.
fn fill(writer: &mut FrameWriter, object: u32, dice: &mut Dice) -> Vec<u8> {
    let mut content = Vec::new();
    for _ in 0..1 + dice.below(12) {
        let len = 1 + dice.below(40_000) as usize;
        let offset = content.len() as u64;
        if dice.below(3) == 0 {
            writer.zero(object, offset, len as u64, 0).unwrap();
            content.resize(content.len() + len, 0);
        } else {
            let data = dice.bytes(len);
            let how = [Compression::None, Compression::Zstd(1), Compression::Auto][dice.below(3) as usize];
            writer.put(object, offset, &data, how).unwrap();
            content.extend_from_slice(&data);
        }
    }
    content
}

#[test]
fn random_frames_come_back_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.frame");
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let mut writer = writer(&path);
        let contents: Vec<Vec<u8>> = (0..1 + dice.below(5) as u32).map(|n| fill(&mut writer, n, &mut dice)).collect();
        let manifest_len = dice.below(5000) as usize;
        let manifest = dice.bytes(manifest_len);
        let written = writer.finish(&manifest).unwrap();
        let reader = FrameReader::open(&path).unwrap();
        assert_eq!(reader.manifest(), manifest);
        let len = fs::metadata(&path).unwrap().len();
        assert_eq!((written.bytes, reader.bytes()), (len, len));
        assert_eq!(reader.objects().collect::<Vec<_>>(), (0..contents.len() as u32).collect::<Vec<_>>());
        for (object, content) in (0..).zip(&contents) {
            compare(&reader, object, content, &mut dice);
        }
        let total: usize = contents.iter().map(Vec::len).sum();
        assert_eq!(written.data_bytes + written.zero_bytes, total as u64, "seed {seed}");
        assert_eq!(reader.verify(&mut |_, _| {}).unwrap().data_bytes, written.data_bytes);
    }
}

/// Reads an object whole, in random pieces and beyond its end.
fn compare(reader: &FrameReader, object: u32, content: &[u8], dice: &mut Dice) {
    assert_eq!(reader.runs(object).map(|run| run.len).sum::<u64>(), content.len() as u64);
    let mut all = vec![0xaa; content.len()];
    reader.read_at(object, 0, &mut all).unwrap();
    assert!(all == content, "object {object} differs");
    for _ in 0..5 {
        let start = dice.below(content.len() as u64) as usize;
        let len = dice.below((content.len() - start) as u64 + 1) as usize;
        reader.read_at(object, start as u64, &mut all[..len]).unwrap();
        assert!(all[..len] == content[start..start + len], "object {object} differs at {start}+{len}");
    }
    let error = reader.read_at(object, content.len() as u64 - 1, &mut [0; 2]).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn blocks_encoded_by_many_threads_are_read_by_many_threads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.frame");
    let pages: Vec<Vec<u8>> = (0..16).map(|n| vec![n as u8; 65536]).collect();
    let blocks: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            pages.iter().map(|raw| scope.spawn(|| encode(raw, Compression::Zstd(3)).unwrap())).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let mut writer = writer(&path);
    for (n, block) in (0u64..).zip(&blocks) {
        // Each block holds the halves of two far places, the second half first.
        let low = RunInBlock { object: 9, offset: n * 32768, at: 32768, len: 32768, generation: 0 };
        let high = RunInBlock { object: 9, offset: (1 << 40) + n * 32768, at: 0, len: 32768, generation: 0 };
        writer.append(block, &[high, low]).unwrap();
    }
    writer.finish(b"").unwrap();
    let reader = FrameReader::open(&path).unwrap();
    assert_eq!(reader.blocks().len(), 16);
    std::thread::scope(|scope| {
        for run in reader.runs(9) {
            let (reader, pages) = (&reader, &pages);
            scope.spawn(move || {
                let Place::Data { block, .. } = run.place else { panic!("no zero runs here") };
                let mut buffer = Block::default();
                reader.read_block(block, &mut buffer).unwrap();
                assert_eq!(buffer.raw(), pages[block as usize]);
            });
        }
    });
    assert_eq!(reader.read_block(16, &mut Block::default()).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn large_data_is_cut_into_blocks_and_progress_reaches_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.frame");
    let data = Dice(1).bytes(2 * BLOCK_MAX + 5);
    let mut writer = writer(&path);
    writer.put(0, 77, &data, Compression::Auto).unwrap();
    assert_eq!(writer.finish(b"m").unwrap().blocks, 3);
    let mut seen = Vec::new();
    FrameReader::open(&path).unwrap().verify(&mut |done, total| seen.push((done, total))).unwrap();
    assert_eq!(seen.len(), 4);
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(seen[3].0, seen[3].1);
}

#[test]
fn empty_frame_is_a_frame() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.frame");
    writer(&path).finish(b"").unwrap();
    let reader = FrameReader::open(&path).unwrap();
    assert_eq!((reader.objects().count(), reader.blocks().len(), reader.manifest()), (0, 0, &b""[..]));
    assert!(reader.header().is_native());
    check(&path).unwrap();
}

#[test]
fn every_flipped_bit_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = small_frame(dir.path());
    check(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let broken = dir.path().join("broken.frame");
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            fs::write(&broken, &bytes).unwrap();
            let error = check(&broken).expect_err(&format!("byte {at} bit {bit}"));
            assert_eq!(error.kind(), Kind::Corrupt, "{error}");
            let text = error.to_string();
            assert!(text.contains("broken.frame") && text.contains("; ") && !text.contains('\n'), "{text}");
        }
    }
}

#[test]
fn every_truncation_and_every_appendix_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = small_frame(dir.path());
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(FrameReader::open(&path).expect_err(&len.to_string()).kind(), Kind::Corrupt);
    }
    for tail in [&[0][..], &whole[whole.len() - 96..], &whole] {
        fs::write(&path, [&whole, tail].concat()).unwrap();
        assert_eq!(FrameReader::open(&path).unwrap_err().kind(), Kind::Corrupt);
    }
}

#[test]
fn flipped_page_bytes_of_a_large_frame_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.frame");
    let mut dice = Dice(11);
    let mut writer = writer(&path);
    for n in 0..8 {
        let compression = if n % 2 == 0 { Compression::None } else { Compression::Zstd(1) };
        writer.put(0, n * 65536, &dice.bytes(65536), compression).unwrap();
    }
    let blocks_end = writer.position();
    writer.finish(b"{}").unwrap();
    let mut bytes = fs::read(&path).unwrap();
    for _ in 0..200 {
        let at = HEADER_LEN + dice.below(blocks_end - HEADER_LEN as u64) as usize;
        let bit = 1 << dice.below(8);
        bytes[at] ^= bit;
        fs::write(&path, &bytes).unwrap();
        let reader = FrameReader::open(&path).expect("blocks are checked when they are read");
        let error = reader.verify(&mut |_, _| {}).expect_err(&format!("offset {at}"));
        assert!(error.to_string().contains("block"), "{error}");
        bytes[at] ^= bit;
    }
}

#[test]
fn swapped_blocks_and_glued_halves_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.frame");
    let mut writer = writer(&path);
    writer.put(0, 0, &[1; 100], Compression::None).unwrap();
    writer.put(0, 100, &[2; 100], Compression::None).unwrap();
    writer.finish(b"{}").unwrap();
    let whole = fs::read(&path).unwrap();
    let (first, second) = (&whole[96..216], &whole[216..336]);
    fs::write(&path, [&whole[..96], second, first, &whole[336..]].concat()).unwrap();
    assert!(check(&path).unwrap_err().to_string().contains("block 0 at offset 96"));
    let other = Header::new(None);
    let twin = dir.path().join("2.frame");
    FrameWriter::create(fs::File::create(&twin).unwrap(), &twin, &other).unwrap().finish(b"").unwrap();
    fs::write(&path, [&fs::read(&twin).unwrap()[..96], &whole[96..]].concat()).unwrap();
    assert!(check(&path).unwrap_err().to_string().contains("two different frames"));
}

#[test]
fn frame_of_format_1_stays_readable() {
    let reader = FrameReader::open(Path::new("tests/frames/format-1.frame")).unwrap();
    let header = Header { arch: 62, created_ns: 1_700_000_000_000_000_000, id: FrameId([1; 16]), parent: None };
    assert_eq!(reader.header(), &header);
    assert_eq!(reader.manifest(), br#"{"pid": 1}"#);
    assert_eq!(reader.objects().collect::<Vec<_>>(), [1, 2]);
    let mut content = [0xaa; 12288];
    reader.read_at(1, 0, &mut content).unwrap();
    assert_eq!(content[..8192], [[7; 4096], [0; 4096]].concat());
    assert_eq!(&content[8192..], "frame by frame, ".repeat(256).as_bytes());
    reader.read_at(2, 5, &mut content[..3]).unwrap();
    assert_eq!(&content[..3], b"odd");
    assert_eq!(reader.verify(&mut |_, _| {}).unwrap().blocks, 3);
}

#[test]
fn newer_format_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = small_frame(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[8..12].copy_from_slice(&7u32.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let error = FrameReader::open(&path).unwrap_err().to_string();
    let words = "frame format 7 is newer than this stillframe understands (1); use a newer stillframe";
    assert!(error.ends_with(words), "{error}");
}

#[test]
fn garbage_is_refused_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = small_frame(dir.path());
    let whole = fs::read(&path).unwrap();
    let mut dice = Dice(42);
    for round in 0..4000 {
        let bytes = match round % 2 {
            0 => {
                let len = dice.below(2000) as usize;
                dice.bytes(len)
            }
            _ => scramble(&whole, &mut dice),
        };
        fs::write(&path, &bytes).unwrap();
        assert!(bytes == whole || check(&path).is_err(), "round {round}");
    }
}

/// A frame with a random stretch of it replaced, and the outer checksums put right again, so that the inner ones must do.
fn scramble(whole: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let start = dice.below(whole.len() as u64) as usize;
    let len = (1 + dice.below(64) as usize).min(whole.len() - start);
    bytes[start..start + len].copy_from_slice(&dice.bytes(len));
    let footer = bytes.len() - 96;
    for (from, to) in [(0, 92), (footer, footer + 88)] {
        let crc = crc32fast::hash(&bytes[from..to]);
        bytes[to..to + 4].copy_from_slice(&crc.to_le_bytes());
    }
    // The header carries facts that only its own checksum can vouch for.
    bytes[12..64].copy_from_slice(&whole[12..64]);
    let crc = crc32fast::hash(&bytes[..92]);
    bytes[92..96].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn misuse_is_refused_before_it_reaches_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.frame");
    let mut writer = writer(&path);
    let block = encode(&[1; 100], Compression::None).unwrap();
    let run = RunInBlock { object: 0, offset: 0, at: 0, len: 100, generation: 0 };
    let wrong = [RunInBlock { len: 0, ..run }, RunInBlock { at: 1, ..run }, RunInBlock { offset: u64::MAX, ..run }];
    for run in wrong {
        assert_eq!(writer.append(&block, &[run]).unwrap_err().kind(), Kind::Usage);
    }
    assert_eq!(writer.zero(0, 0, 0, 0).unwrap_err().kind(), Kind::Usage);
    assert_eq!(writer.parent(0, 0, 4096, 0).unwrap_err().kind(), Kind::Usage);
    assert_eq!(writer.clip(5, &[(9, 3)]).unwrap_err().kind(), Kind::Usage);
    writer.append(&block, &[run]).unwrap();
    writer.zero(0, 99, 1, 0).unwrap();
    let error = writer.finish(b"").unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert_eq!(FrameReader::open(&path).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn what_is_no_frame_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(FrameReader::open(dir.path()).unwrap_err().kind(), Kind::Usage);
    assert_eq!(FrameReader::open(&dir.path().join("none")).unwrap_err().kind(), Kind::NotFound);
    let text = dir.path().join("text");
    fs::write(&text, "hello ".repeat(100)).unwrap();
    let error = FrameReader::open(&text).unwrap_err().to_string();
    assert!(error.contains("does not begin as a frame"), "{error}");
}
