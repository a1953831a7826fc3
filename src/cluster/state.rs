//! The store of cluster state: keys with revisions, transactions, watches and leases. What etcd offers, as far as an agent needs it.

use std::time::Duration;

use crate::error::Result;

pub mod etcd;
pub mod local;

/// A number that grows with every change of the store.
pub type Revision = i64;

/// Names a lease.
pub type Lease = i64;

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The revision that created it; a key deleted and put again has a new one.
    pub created: Revision,
    /// The revision that last changed it.
    pub modified: Revision,
    /// The lease that it ends with; 0 for none.
    pub lease: Lease,
}

/// Keys as of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// As of when.
    pub revision: Revision,
    /// The entries, by key.
    pub entries: Vec<Entry>,
}

/// What must hold for a transaction to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guard {
    /// The key does not exist.
    Absent(String),
    /// The key was created at this revision and has not been deleted since.
    Created(String, Revision),
    /// The key was last changed at this revision.
    Modified(String, Revision),
}

/// What a transaction does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets a key, to end with a lease (0: with none).
    Put(String, String, Lease),
    /// Removes a key, if it is there.
    Delete(String),
}

impl Change {
    /// Sets a key without a lease.
    pub fn put(key: impl Into<String>, value: impl Into<String>) -> Change {
        Change::Put(key.into(), value.into(), 0)
    }
}

/// A change that somebody made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Event {
    /// When.
    pub revision: Revision,
    /// Which key.
    pub key: String,
    /// What it is now; none: deleted.
    pub entry: Option<Entry>,
}

/// A store of cluster state. Every call waits a bounded time; a store that cannot be reached, or has no majority, is `Kind::Busy`.
pub trait State: Send + Sync {
    /// All keys that start with `prefix`.
    fn range(&self, prefix: &str) -> Result<Snapshot>;
    /// Makes all changes at once if all guards hold; gives the revision, or nothing if a guard does not hold.
    fn commit(&self, guards: &[Guard], changes: &[Change]) -> Result<Option<Revision>>;
    /// Follows the changes of keys that start with `prefix`, beginning with the one after revision `after`.
    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>>;
    /// Begins a lease that ends `ttl` (whole seconds) after its last renewal.
    fn grant(&self, ttl: Duration) -> Result<Lease>;
    /// Renews a lease; false if it has ended.
    fn renew(&self, lease: Lease) -> Result<bool>;
    /// Ends a lease, and with it its keys; one that has ended is no error.
    fn revoke(&self, lease: Lease) -> Result<()>;

    /// One key.
    fn get(&self, key: &str) -> Result<Option<Entry>> {
        Ok(self.range(key)?.entries.into_iter().find(|entry| entry.key == key))
    }

    /// Sets a key, without guards and lease.
    fn put(&self, key: &str, value: &str) -> Result<()> {
        self.commit(&[], &[Change::put(key, value)]).map(drop)
    }

    /// Removes a key.
    fn delete(&self, key: &str) -> Result<()> {
        self.commit(&[], &[Change::Delete(key.to_owned())]).map(drop)
    }
}

/// Changes as they come.
pub trait Watch: Send {
    /// The next changes in their order; empty when none came for a while. After an error the watch is over: read the range anew.
    fn next(&mut self) -> Result<Vec<Event>>;
}
