//! The GNU build id of an ELF file: tells two builds of one library apart.

use std::fs::File;
use std::os::unix::fs::FileExt;

const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;

/// The build id in hexadecimal; `None` for a file that has none or is no ELF file.
pub fn read(file: &File) -> Option<String> {
    let header = bytes(file, 0, 64)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64::from_le_bytes(header[32..40].try_into().ok()?);
    let entry_size = u16::from_le_bytes(header[54..56].try_into().ok()?);
    let count = u16::from_le_bytes(header[56..58].try_into().ok()?);
    (0..count).find_map(|n| {
        let entry = bytes(file, table.checked_add(u64::from(n) * u64::from(entry_size))?, 56)?;
        let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap_or_default());
        if u32::from_le_bytes(entry[..4].try_into().ok()?) != PT_NOTE || word(32) > 1 << 16 {
            return None;
        }
        in_notes(&bytes(file, word(8), word(32) as usize)?)
    })
}

fn bytes(file: &File, offset: u64, len: usize) -> Option<Vec<u8>> {
    let mut buf = vec![0; len];
    file.read_exact_at(&mut buf, offset).ok()?;
    Some(buf)
}

fn in_notes(mut notes: &[u8]) -> Option<String> {
    while notes.len() >= 12 {
        let word = |at: usize| u32::from_le_bytes(notes[at..at + 4].try_into().unwrap_or_default());
        let (name_len, len, kind) = (word(0) as usize, word(4) as usize, word(8));
        let start = 12 + name_len.next_multiple_of(4);
        let note = notes.get(start..start.checked_add(len)?)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..16) == Some(b"GNU\0") {
            return Some(note.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        notes = notes.get(start + len.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_shell_has_a_build_id() {
        let id = super::read(&std::fs::File::open("/bin/sh").unwrap()).unwrap();
        assert_eq!(id.len(), 40, "{id}");
    }

    #[test]
    fn text_has_none() {
        assert_eq!(super::read(&std::fs::File::open("/etc/passwd").unwrap()), None);
    }
}
