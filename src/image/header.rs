//! The first bytes of a frame: what it is, for which machine, which frame it builds upon.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use super::{array_at, damaged, put, too_new, u32_at, u64_at};
use crate::error::{Error, Result};

/// Version of the format that is written, and the newest that is read.
pub const FORMAT_VERSION: u32 = 1;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 96;
pub(super) const MAGIC: [u8; 8] = *b"\x89SFRAME\n";

/// Offsets of the header's fields.
pub(super) mod at {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const ARCH: usize = 12;
    pub const FLAGS: usize = 16;
    pub const CREATED: usize = 24;
    pub const ID: usize = 32;
    pub const PARENT: usize = 48;
    pub const RESERVED: usize = 64;
    pub const CRC: usize = 92;
}

/// ELF machine number of the machine this program was built for.
const ARCH_HERE: u32 = if cfg!(target_arch = "x86_64") {
    62
} else if cfg!(target_arch = "aarch64") {
    183
} else {
    0
};

/// Sixteen bytes that tell one frame from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameId(pub [u8; 16]);

impl FrameId {
    /// A fresh one.
    pub fn generate() -> Self {
        // Every `RandomState` carries its own secret key, so hashing anything with it yields random bits.
        let now = (SystemTime::now(), std::process::id());
        let mut id = [0; 16];
        put(&mut id, 0, &RandomState::new().hash_one(now).to_le_bytes());
        put(&mut id, 8, &RandomState::new().hash_one(now).to_le_bytes());
        FrameId(id)
    }
}

impl fmt::Display for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for FrameId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What the first bytes of a frame say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Header {
    /// Machine the frame was made on, as its ELF machine number.
    pub arch: u32,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: u64,
    /// The frame's own name among all frames.
    pub id: FrameId,
    /// The frame it builds upon.
    pub parent: Option<FrameId>,
}

impl Header {
    /// The header of a frame made here and now.
    pub fn new(parent: Option<FrameId>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let created_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        Header { arch: ARCH_HERE, created_ns, id: FrameId::generate(), parent }
    }

    /// The machine's name, as `uname -m` prints it.
    pub fn arch_name(&self) -> &'static str {
        match self.arch {
            62 => "x86_64",
            183 => "aarch64",
            _ => "unknown",
        }
    }

    /// Whether the frame was made on a machine of the kind this program runs on.
    pub fn is_native(&self) -> bool {
        self.arch == ARCH_HERE
    }

    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        put(&mut bytes, at::MAGIC, &MAGIC);
        put(&mut bytes, at::VERSION, &FORMAT_VERSION.to_le_bytes());
        put(&mut bytes, at::ARCH, &self.arch.to_le_bytes());
        put(&mut bytes, at::CREATED, &self.created_ns.to_le_bytes());
        put(&mut bytes, at::ID, &self.id.0);
        put(&mut bytes, at::PARENT, &self.parent.map_or([0; 16], |parent| parent.0));
        let crc = crc32fast::hash(&bytes[..at::CRC]);
        put(&mut bytes, at::CRC, &crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self> {
        check(bytes)?;
        let parent: [u8; 16] = array_at(bytes, at::PARENT);
        Ok(Header {
            arch: u32_at(bytes, at::ARCH),
            created_ns: u64_at(bytes, at::CREATED),
            id: FrameId(array_at(bytes, at::ID)),
            parent: (parent != [0; 16]).then_some(FrameId(parent)),
        })
    }
}

fn check(bytes: &[u8; HEADER_LEN]) -> Result<()> {
    if bytes[..MAGIC.len()] != MAGIC {
        return Err(Error::corrupt("offset 0: it does not begin as a frame does; name a file that stillframe wrote"));
    }
    let version = u32_at(bytes, at::VERSION);
    // Asked before the checksum, because a later format may keep its checksum elsewhere.
    if version > FORMAT_VERSION {
        let what = format!("frame format {version} is newer than this stillframe understands ({FORMAT_VERSION})");
        return Err(too_new(what));
    }
    let (stored, found) = (u32_at(bytes, at::CRC), crc32fast::hash(&bytes[..at::CRC]));
    if stored != found {
        return Err(damaged(format!("header at offset 0: checksum is {found:08x}, should be {stored:08x}")));
    }
    if version != FORMAT_VERSION {
        return Err(damaged(format!("header at offset {}: there is no frame format {version}", at::VERSION)));
    }
    let flags = u64_at(bytes, at::FLAGS);
    if flags != 0 {
        return Err(too_new(format!("header at offset {}: unknown flags {flags:#x}", at::FLAGS)));
    }
    if bytes[at::RESERVED..at::CRC].iter().any(|&byte| byte != 0) {
        return Err(damaged(format!("header at offset {}: reserved bytes are not zero", at::RESERVED)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_survives_the_round_trip() {
        for parent in [None, Some(FrameId::generate())] {
            let header = Header::new(parent);
            assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        }
    }

    #[test]
    fn fresh_ids_differ() {
        assert_ne!(FrameId::generate(), FrameId::generate());
        assert_eq!(FrameId([0xa5; 16]).to_string(), "a5".repeat(16));
    }

    #[test]
    fn newer_format_is_refused_by_name_even_with_an_unknown_checksum() {
        let mut bytes = Header::new(None).encode();
        bytes[at::VERSION] = 7;
        let error = Header::decode(&bytes).unwrap_err().to_string();
        assert_eq!(error, "frame format 7 is newer than this stillframe understands (1); use a newer stillframe");
    }

    #[test]
    fn unknown_flags_and_used_reserves_are_refused_under_a_right_checksum() {
        for (at, words) in [(at::FLAGS, "unknown flags 0x1"), (at::RESERVED + 3, "reserved")] {
            let mut bytes = Header::new(None).encode();
            bytes[at] = 1;
            let crc = crc32fast::hash(&bytes[..at::CRC]);
            put(&mut bytes, at::CRC, &crc.to_le_bytes());
            assert!(Header::decode(&bytes).unwrap_err().to_string().contains(words));
        }
    }
}
