//! Keeps the tables of `FORMAT.md` true.

use super::{codec, footer, header, index};

const FORMAT: &str = include_str!("FORMAT.md");

/// The cells of each table row below a heading, without the table's own head.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let after =
        FORMAT.lines().skip_while(|line| line.trim_start_matches('#').trim() != heading || !line.starts_with('#'));
    let section = after.skip(1).take_while(|line| !line.starts_with('#'));
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect();
    section.filter(|line| line.starts_with('|')).skip(2).map(cells).collect()
}

/// Compares a byte table with the code: its fields, their offsets, that they leave no gap, and the whole length.
fn check(heading: &str, len: usize, fields: &[(&str, usize)]) {
    let rows = rows(heading);
    let offsets: Vec<(&str, usize)> = rows.iter().map(|row| (row[2], row[0].parse().unwrap())).collect();
    assert_eq!(offsets, fields, "table '{heading}'");
    let end = rows.iter().fold(0, |end, row| {
        assert_eq!(row[0], end.to_string(), "gap in table '{heading}'");
        end + row[1].parse::<usize>().unwrap()
    });
    assert_eq!(end, len, "length of table '{heading}'");
}

/// Compares the bytes of a magic, as the table shows them, with the code.
fn check_magic(heading: &str, field: &str, magic: &[u8]) {
    let hex: Vec<String> = magic.iter().map(|byte| format!("{byte:02x}")).collect();
    let rows = rows(heading);
    let row = rows.iter().find(|row| row[2] == field).unwrap();
    assert_eq!(row[3], format!("`{}`", hex.join(" ")), "table '{heading}'");
}

#[test]
fn numbers_are_those_of_the_code() {
    let code = [
        ("format version", header::FORMAT_VERSION as usize),
        ("header length", header::HEADER_LEN),
        ("block header length", codec::BLOCK_HEADER_LEN),
        ("most raw bytes in a block", codec::BLOCK_MAX),
        ("index preamble length", index::PREAMBLE_LEN),
        ("block entry length", index::BLOCK_ENTRY_LEN),
        ("run entry length", index::RUN_ENTRY_LEN),
        ("footer length", footer::FOOTER_LEN),
        ("codec raw", codec::Codec::Raw as usize),
        ("codec zstd", codec::Codec::Zstd as usize),
        ("run kind data", index::KIND_DATA as usize),
        ("run kind zero", index::KIND_ZERO as usize),
        ("run kind parent", index::KIND_PARENT as usize),
    ];
    let told: Vec<(&str, usize)> = rows("Numbers").iter().map(|row| (row[0], row[1].parse().unwrap())).collect();
    assert_eq!(told, code);
}

#[test]
fn header_table_is_that_of_the_code() {
    use header::at;
    let fields = [
        ("magic", at::MAGIC),
        ("version", at::VERSION),
        ("arch", at::ARCH),
        ("flags", at::FLAGS),
        ("created", at::CREATED),
        ("id", at::ID),
        ("parent", at::PARENT),
        ("reserved", at::RESERVED),
        ("crc", at::CRC),
    ];
    check("Header", header::HEADER_LEN, &fields);
    check_magic("Header", "magic", &header::MAGIC);
}

#[test]
fn block_header_table_is_that_of_the_code() {
    use codec::at;
    let fields = [
        ("magic", at::MAGIC),
        ("codec", at::CODEC),
        ("raw_len", at::RAW_LEN),
        ("stored_len", at::STORED_LEN),
        ("crc", at::CRC),
    ];
    check("Block header", codec::BLOCK_HEADER_LEN, &fields);
    check_magic("Block header", "magic", &codec::BLOCK_MAGIC);
}

#[test]
fn index_tables_are_those_of_the_code() {
    use index::{at, block_at, run_at};
    check("Index", index::PREAMBLE_LEN, &[("blocks", at::BLOCKS), ("runs", at::RUNS)]);
    let block = [("raw_len", block_at::RAW_LEN), ("stored_len", block_at::STORED_LEN), ("crc", block_at::CRC)];
    check("Block entry", index::BLOCK_ENTRY_LEN, &block);
    let run = [
        ("object", run_at::OBJECT),
        ("kind", run_at::KIND),
        ("offset", run_at::OFFSET),
        ("len", run_at::LEN),
        ("block", run_at::BLOCK),
        ("at", run_at::AT),
    ];
    check("Run entry", index::RUN_ENTRY_LEN, &run);
}

#[test]
fn footer_tables_are_those_of_the_code() {
    use footer::{at, section_at};
    let fields = [
        ("index", at::INDEX),
        ("manifest", at::MANIFEST),
        ("file_len", at::FILE_LEN),
        ("id", at::ID),
        ("crc", at::CRC),
        ("end magic", at::END_MAGIC),
    ];
    check("Footer", footer::FOOTER_LEN, &fields);
    check_magic("Footer", "end magic", &footer::END_MAGIC);
    let section = [
        ("offset", section_at::OFFSET),
        ("stored_len", section_at::STORED_LEN),
        ("raw_len", section_at::RAW_LEN),
        ("codec", section_at::CODEC),
        ("crc", section_at::CRC),
    ];
    check("Section description", at::MANIFEST - at::INDEX, &section);
}
