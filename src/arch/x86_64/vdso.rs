//! The vDSO: a place for a stub, and a `syscall` instruction to borrow.

/// Offset of a `syscall` instruction in the vDSO's bytes.
pub fn syscall_site(image: &[u8]) -> Option<u64> {
    image.windows(2).position(|w| w == [0x0f, 0x05]).map(|at| at as u64)
}

/// Offset of the padding behind the vDSO's code that can hold a stub of `len` bytes.
pub fn padding(image: &[u8], len: usize) -> Option<u64> {
    let used = image.iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
    // A margin, lest the last zero bytes belong to a symbol.
    let at = (used + 64 + 15) & !15;
    (at + len <= image.len()).then_some(at as u64)
}
