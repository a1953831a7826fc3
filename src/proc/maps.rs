//! /proc/PID/maps and the VmFlags of /proc/PID/smaps.

use std::path::Path;

use super::{bad, text};
use crate::error::Result;

/// One line of /proc/PID/maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// PROT_READ, PROT_WRITE, PROT_EXEC.
    pub prot: i32,
    /// MAP_SHARED.
    pub shared: bool,
    /// Offset into the file, in bytes.
    pub offset: u64,
    /// Device of the file as `major:minor` in hexadecimal; `00:00` for none.
    pub device: String,
    /// Inode of the file; 0 for none.
    pub inode: u64,
    /// Path, or a name in brackets, or nothing.
    pub name: String,
}

impl Vma {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Mappings are never empty; here for completeness.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }
}

/// Parses the text of a maps file.
pub fn parse(text: &str) -> Result<Vec<Vma>> {
    text.lines().map(line).collect()
}

/// Reads and parses a maps file.
pub fn read(path: &Path) -> Result<Vec<Vma>> {
    parse(&text(path)?)
}

fn line(line: &str) -> Result<Vma> {
    parse_line(line).ok_or_else(|| bad("a line of a maps file", line))
}

fn parse_line(line: &str) -> Option<Vma> {
    let mut rest = line;
    let mut word = || {
        let (word, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = tail;
        (!word.is_empty()).then_some(word)
    };
    let (start, end) = word()?.split_once('-')?;
    let perms = word()?.as_bytes();
    let offset = word()?;
    let device = word()?.to_owned();
    let inode = word()?.parse().ok()?;
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    let bit = |at: usize, letter, value| if perms.get(at) == Some(&letter) { value } else { 0 };
    Some(Vma {
        start: hex(start)?,
        end: hex(end)?,
        prot: bit(0, b'r', libc::PROT_READ) | bit(1, b'w', libc::PROT_WRITE) | bit(2, b'x', libc::PROT_EXEC),
        shared: perms.get(3) == Some(&b's'),
        offset: hex(offset)?,
        device,
        inode,
        name: rest.trim_start_matches(' ').replace("\\012", "\n"),
    })
}

/// A mapping with its flags (two-letter names of `VmFlags`) and its page size in bytes.
#[derive(Debug, Clone)]
pub struct Flagged {
    /// The mapping.
    pub vma: Vma,
    /// Two-letter names, as the kernel prints them.
    pub flags: Vec<String>,
    /// 4096, or the size of an explicit huge page.
    pub page_size: u64,
}

/// Parses the text of a smaps file.
pub fn parse_smaps(text: &str) -> Result<Vec<Flagged>> {
    let mut found: Vec<Flagged> = Vec::new();
    for row in text.lines() {
        let (key, value) = row.split_once(':').unwrap_or((row, ""));
        match (key, found.last_mut()) {
            ("VmFlags", Some(last)) => last.flags = value.split_whitespace().map(str::to_owned).collect(),
            ("KernelPageSize", Some(last)) => {
                let kib: u64 = value.trim().trim_end_matches(" kB").parse().map_err(|_| bad("a page size", row))?;
                last.page_size = kib * 1024;
            }
            _ if key.as_bytes().first().is_some_and(u8::is_ascii_uppercase) => {}
            _ => found.push(Flagged { vma: line(row)?, flags: Vec::new(), page_size: super::super::sys::PAGE }),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_spaces_in_its_path() {
        let vma = &parse("7f00-8f00 r-xs 00001000 fe:01 42                         /tmp/a b (deleted)\n").unwrap()[0];
        assert_eq!((vma.start, vma.end, vma.offset, vma.inode, vma.shared), (0x7f00, 0x8f00, 0x1000, 42, true));
        assert_eq!(vma.prot, libc::PROT_READ | libc::PROT_EXEC);
        assert_eq!(vma.name, "/tmp/a b (deleted)");
    }

    #[test]
    fn flags_belong_to_their_mapping() {
        let text = "1000-2000 rw-p 00000000 00:00 0 \nSize: 4 kB\nKernelPageSize: 4 kB\nVmFlags: rd wr lo \n2000-3000 ---p 00000000 00:00 0 [stack]\nKernelPageSize: 2048 kB\nVmFlags: gd\n";
        let maps = parse_smaps(text).unwrap();
        assert_eq!(maps[0].flags, ["rd", "wr", "lo"]);
        assert_eq!((maps[1].page_size, maps[1].vma.name.as_str()), (2 << 20, "[stack]"));
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(parse("hello").is_err());
    }
}
