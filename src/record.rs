//! What a frame of named regions knows besides their bytes: the manifest of a linked program's snapshot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What tells such a manifest from that of a process tree.
const KIND: &str = "regions";
/// The object that holds the program's typed state.
pub const STATE: u32 = 0;

/// Everything but the bytes of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    kind: String,
    /// The name it was taken under.
    pub name: String,
    /// When, in nanoseconds since 1970.
    pub taken_ns: u64,
    /// How it went.
    pub taking: Taking,
    /// Who took it.
    pub program: Program,
    /// What the program wrote on it.
    pub labels: BTreeMap<String, String>,
    /// Length of the typed state in bytes; it is object 0.
    pub state_len: u64,
    /// The regions, by name.
    pub regions: Vec<Area>,
}

/// How a snapshot was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taking {
    /// `fork`, `write-protect` or `copy`.
    pub method: String,
    /// How long the program stood still, in nanoseconds.
    pub pause_ns: u64,
    /// Bytes looked at, before zero pages are dropped.
    pub bytes: u64,
}

/// Who took a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its process id.
    pub pid: i32,
    /// Its command name.
    pub command: String,
    /// Where it ran.
    pub hostname: String,
}

/// One region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// What the program calls it.
    pub name: String,
    /// The object that holds its bytes; offsets in it count from the region's start.
    pub object: u32,
    /// Where it was.
    pub address: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Stretches (offset, length) that are not in the frame.
    pub excluded: Vec<(u64, u64)>,
}

impl Record {
    /// A record of a snapshot of `name` to be filled in.
    pub fn new(name: &str, program: Program) -> Record {
        Record {
            kind: KIND.to_owned(),
            name: name.to_owned(),
            taken_ns: 0,
            taking: Taking::default(),
            program,
            labels: BTreeMap::new(),
            state_len: 0,
            regions: Vec::new(),
        }
    }

    /// As the bytes that a frame stores.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::corrupt(format!("the manifest cannot be written: {e}")))
    }

    /// From the bytes that a frame stores; none if the frame is one of processes.
    pub fn read(bytes: &[u8]) -> Result<Option<Record>> {
        #[derive(Deserialize)]
        struct Kind {
            kind: Option<String>,
        }
        let wrong = |e| Error::corrupt(format!("the frame's manifest makes no sense: {e}; it was written by another version of stillframe"));
        let kind: Kind = serde_json::from_slice(bytes).map_err(wrong)?;
        match kind.kind.as_deref() {
            Some(KIND) => serde_json::from_slice(bytes).map(Some).map_err(wrong),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_round_trip_and_are_told_from_manifests_of_trees() {
        let mut record = Record::new("heat", Program { pid: 7, command: "heat".to_owned(), hostname: "here".to_owned() });
        record.labels.insert("phase".to_owned(), "two".to_owned());
        record.regions.push(Area { name: "grid".to_owned(), object: 1, address: 4096, len: 100, excluded: vec![(10, 2)] });
        assert_eq!(Record::read(&record.to_bytes().unwrap()).unwrap(), Some(record));
        assert_eq!(Record::read(b"{\"name\":\"tree\",\"processes\":[]}").unwrap(), None);
        assert!(Record::read(b"[").is_err());
        assert!(Record::read(b"{\"kind\":\"regions\"}").is_err());
    }
}
