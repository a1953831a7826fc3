//! What frames are called: NAME@SEQ.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Kind, Result};
use crate::image::SUFFIX;

/// Longest name in bytes.
const NAME_MAX: usize = 128;

/// One frame of a store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameRef {
    name: String,
    seq: u64,
}

impl FrameRef {
    /// Frame number `seq`, counted from 1, of `name`.
    pub fn new(name: &str, seq: u64) -> Result<Self> {
        check_name(name)?;
        if seq == 0 {
            return Err(Error::new(Kind::Usage, format!("there is no frame {name}@0; numbers start at 1")));
        }
        Ok(FrameRef { name: name.to_owned(), seq })
    }

    /// The name it shares with the frames before and after it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number, counted from 1.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The name of its file inside the directory of its name.
    pub(super) fn file_name(&self) -> String {
        format!("{:08}{SUFFIX}", self.seq)
    }
}

impl fmt::Display for FrameRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.seq)
    }
}

impl FromStr for FrameRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('@').and_then(|(name, seq)| Some((name, number(seq)?)));
        match parts {
            Some((name, seq)) => FrameRef::new(name, seq),
            None => Err(Error::new(Kind::Usage, format!("'{text}' names no frame; write NAME@NUMBER, as in web@3"))),
        }
    }
}

impl Serialize for FrameRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A decimal number of digits alone: no sign, no space.
pub(super) fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The number of the frame in a file of this name; nothing if no frame is called so.
pub(super) fn seq_of(file_name: &str) -> Option<u64> {
    let seq = number(file_name.strip_suffix(SUFFIX)?)?;
    (seq > 0 && format!("{seq:08}{SUFFIX}") == file_name).then_some(seq)
}

/// Refuses names that are no plain file names, or that could be taken for a path to a frame.
pub(super) fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let why = match name {
        "" => "it is empty",
        _ if name.len() > NAME_MAX => "it is too long",
        _ if name.starts_with('.') => "it starts with a dot",
        _ if name.ends_with(SUFFIX) => "it ends in .frame, as paths to frames do",
        _ if !name.bytes().all(plain) => "it has a character that is not allowed",
        _ => return Ok(()),
    };
    let rule = format!("use up to {NAME_MAX} of A-Z a-z 0-9 . _ -");
    let shown: String = name.chars().take(NAME_MAX).flat_map(char::escape_default).collect();
    Err(Error::new(Kind::Usage, format!("'{shown}' cannot name a frame, {why}; {rule}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_shown_alike() {
        for text in ["web@1", "a.b-c_D9@123456789"] {
            assert_eq!(text.parse::<FrameRef>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "web",
            "web@",
            "web@0",
            "web@+1",
            "web@ 1",
            "web@1@2",
            "@1",
            ".x@1",
            "a/b@1",
            "web@99999999999999999999",
        ] {
            assert_eq!(text.parse::<FrameRef>().unwrap_err().kind(), Kind::Usage, "{text}");
        }
    }

    #[test]
    fn names_that_are_no_plain_file_names_are_refused_in_one_line() {
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "a\nb", "a@b", "ä", "x.frame", &"x".repeat(129)] {
            let error = check_name(name).unwrap_err().to_string();
            assert!(error.contains("cannot name a frame") && !error.contains('\n'), "{error}");
        }
        check_name(&"x".repeat(128)).unwrap();
    }

    #[test]
    fn only_files_named_by_the_rule_are_frames() {
        assert_eq!(seq_of("00000012.frame"), Some(12));
        assert_eq!(seq_of("123456789.frame"), Some(123_456_789));
        for name in ["12.frame", "000000012.frame", "00000000.frame", "00000012", ".seq", "+0000012.frame", "x.frame"] {
            assert_eq!(seq_of(name), None, "{name}");
        }
        assert_eq!(FrameRef::new("web", 12).unwrap().file_name(), "00000012.frame");
    }
}
