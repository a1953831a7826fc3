//! Address spaces: which mappings a process has, what backs them, and which pages a frame must hold.

mod capture;
mod restore;

use serde::{Deserialize, Serialize};

pub use capture::{capture, learn, page_ranges, Captured, Pages, Survey};
pub use restore::{find_hole, prepare, protect};

use super::files::FileId;

/// What backs a mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Nothing: private anonymous memory.
    Anonymous,
    /// Private anonymous memory in huge pages of this size in bytes.
    HugePages(u64),
    /// A file, or what stands for one (memfd, shared anonymous memory).
    File(FileId),
    /// A System V segment.
    Segment(FileId),
    /// The kernel's own code and data: `[vdso]`, `[vvar]` …
    Kernel(String),
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address behind the last byte.
    pub end: u64,
    /// PROT_READ, PROT_WRITE, PROT_EXEC.
    pub prot: i32,
    /// MAP_SHARED.
    pub shared: bool,
    /// What backs it.
    pub backing: Backing,
    /// Offset into the backing file in bytes.
    pub offset: u64,
    /// The kernel's two-letter names of advice and locks (`lo`, `hg`, `dc` …).
    pub flags: Vec<String>,
}

impl Mapping {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Mappings are never empty; here for completeness.
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }

    /// Whether the kernel prints this two-letter flag.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    /// Whether it can hold pages of its process alone, which only the frame can bring back.
    pub fn is_private(&self) -> bool {
        !self.shared && !matches!(self.backing, Backing::Kernel(_) | Backing::Segment(_))
    }

    /// Whether a fork leaves its pages out or apart: they are copied in the pause.
    pub fn escapes_fork(&self) -> bool {
        self.has("dc") || self.has("wf") || matches!(self.backing, Backing::HugePages(_))
    }
}

/// The memory of one process, or of several that share it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddressSpace {
    /// The object of the frame that holds its private pages, offset = address.
    pub object: u32,
    /// Its mappings by address.
    pub mappings: Vec<Mapping>,
    /// Guard ranges (start, length) installed by MADV_GUARD_INSTALL.
    pub guards: Vec<(u64, u64)>,
}
