//! XSAVE areas: the extended state of one processor, made to fit another.

use crate::error::{Error, Result};

/// Where the header says which components are not in their initial state.
const IN_USE: usize = 512;
/// Where the kernel tells which components it knows.
const KNOWN: usize = 464;

/// `area` in the length that this kernel wants, which is that of its `own` areas. Components that one side lacks must be unused.
pub fn fit(area: &[u8], own: &[u8]) -> Result<Vec<u8>> {
    if area.len() == own.len() {
        return Ok(area.to_vec());
    }
    let missing = word(area, IN_USE)? & !word(own, KNOWN)?;
    if missing != 0 {
        return Err(Error::refused(format!("it uses processor state (XSAVE components {missing:#x}) that this processor lacks; restore on a processor like the original's")));
    }
    let mut fitted = area.to_vec();
    fitted.resize(own.len(), 0);
    Ok(fitted)
}

fn word(area: &[u8], at: usize) -> Result<u64> {
    let word = area.get(at..).and_then(|rest| rest.first_chunk());
    word.map(|word| u64::from_le_bytes(*word)).ok_or_else(|| Error::corrupt("a thread's processor state is too short"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(len: usize, known: u64, in_use: u64) -> Vec<u8> {
        let mut area = vec![0; len];
        area[KNOWN..KNOWN + 8].copy_from_slice(&known.to_le_bytes());
        area[IN_USE..IN_USE + 8].copy_from_slice(&in_use.to_le_bytes());
        area
    }

    #[test]
    fn a_larger_processor_takes_a_smaller_ones_state() {
        assert_eq!(fit(&area(832, 7, 7), &area(2696, 0xe7, 0)).unwrap().len(), 2696);
    }

    #[test]
    fn a_smaller_one_only_what_it_has() {
        assert_eq!(fit(&area(2696, 0xe7, 7), &area(832, 7, 0)).unwrap().len(), 832);
        assert!(fit(&area(2696, 0xe7, 0xe7), &area(832, 7, 0)).is_err());
    }
}
