//! The keys of a cluster, and what they say: the shared part of every decision.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::config;
use super::state::{Entry, Event, Lease, Revision, Snapshot};

/// Where a cluster's keys are.
#[derive(Debug, Clone)]
pub struct Keys(String);

impl Keys {
    /// Those of this cluster.
    pub fn of(cluster: &str) -> Keys {
        Keys(format!("/stillframe/{cluster}/"))
    }

    /// What they all start with.
    pub fn prefix(&self) -> &str {
        &self.0
    }

    /// A key of a kind: `owner/NAME` …
    pub fn at(&self, kind: &str, name: &str) -> String {
        format!("{}{kind}/{name}", self.0)
    }

    /// The key that pauses everything.
    pub fn pause(&self) -> String {
        format!("{}pause", self.0)
    }
}

/// A node that lives, as its agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// How much it can host.
    pub capacity: u32,
    /// Features of its processor.
    pub features: BTreeSet<String>,
    /// Services may fail over to it.
    pub allow_failover: bool,
    /// It is about to leave, and means to.
    pub leaving: bool,
    /// Its REST interface.
    pub rest: Option<std::net::SocketAddr>,
}

/// Who owns a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The node.
    pub node: String,
    /// The fencing token: the create revision of the key.
    pub token: Revision,
    /// The lease that it ends with.
    pub lease: Lease,
}

/// Who owned a service last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Last {
    /// The node.
    pub node: String,
    /// It let go by itself: nothing of it runs any more.
    pub released: bool,
    /// Who is to have it next.
    pub next: Option<String>,
    /// Where it failed for good.
    pub avoid: BTreeSet<String>,
    /// Who takes it back if it does not come up after a planned move.
    #[serde(default)]
    pub back: Option<String>,
}

/// What an owner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It starts, or is brought back from a frame.
    Restoring,
    /// It runs, and its probes pass.
    Running,
    /// It is framed for the last time here, to move.
    HandingOver,
    /// It failed and is not running.
    Failed,
    /// Nobody can run it.
    Down,
}

/// What an owner does, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// What.
    pub state: State,
    /// Who says so.
    pub node: String,
    /// The reason, for a person.
    pub why: String,
}

/// The newest committed frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The token of the owner that took it: its directory.
    pub token: Revision,
    /// Its number there.
    pub seq: u64,
    /// When it was taken, in nanoseconds since 1970.
    pub taken_ns: u64,
    /// Where.
    pub node: String,
    /// Processor features that its program may use.
    pub features: BTreeSet<String>,
    /// Clients that were connected: (service's end, client's end).
    pub clients: Vec<(std::net::SocketAddr, std::net::SocketAddr)>,
}

/// What an operator wants of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Move it with a last frame, to a node or to the best.
    Switchover(Option<String>),
    /// End it here and resume its newest committed frame elsewhere.
    Failover(Option<String>),
    /// Take a frame now.
    Frame,
}

/// All that is known of a service.
#[derive(Debug, Clone, Default)]
pub struct Service {
    /// What the operator wants; none: it was removed.
    pub spec: Option<config::Service>,
    /// Who has it.
    pub owner: Option<Owner>,
    /// Who had it last.
    pub last: Option<Last>,
    /// What its owner does.
    pub phase: Option<Phase>,
    /// Its newest committed frame.
    pub frame: Option<Frame>,
    /// Whether somebody is left to take over.
    pub protected: Option<bool>,
    /// What an operator asked for.
    pub request: Option<Request>,
}

/// The cluster as of one revision.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Nodes that live.
    pub nodes: BTreeMap<String, Node>,
    /// Services, wanted or left over.
    pub services: BTreeMap<String, Service>,
    /// Nodes that are to be left empty.
    pub drained: BTreeSet<String>,
    /// Nodes that were shut off.
    pub fenced: BTreeSet<String>,
    /// Hands off.
    pub paused: bool,
}

/// The raw keys, kept up to date by a watch.
#[derive(Debug, Clone, Default)]
pub struct Mirror {
    /// As of when.
    pub revision: Revision,
    entries: BTreeMap<String, Entry>,
}

impl Mirror {
    /// Starts from a snapshot.
    pub fn of(snapshot: Snapshot) -> Mirror {
        Mirror { revision: snapshot.revision, entries: snapshot.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect() }
    }

    /// Takes a change in.
    pub fn apply(&mut self, event: &Event) {
        self.revision = self.revision.max(event.revision);
        match &event.entry {
            Some(entry) => drop(self.entries.insert(event.key.clone(), entry.clone())),
            None => drop(self.entries.remove(&event.key)),
        }
    }

    /// One key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// What the keys say; a value that cannot be read counts as missing.
    pub fn view(&self, keys: &Keys) -> View {
        let mut view = View::default();
        for entry in self.entries.values() {
            let Some(path) = entry.key.strip_prefix(keys.prefix()) else { continue };
            match path.split_once('/') {
                None => view.paused |= path == "pause",
                Some((kind, name)) => view.take_in(kind, name, entry),
            }
        }
        view
    }
}

fn read<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    serde_json::from_str(&entry.value).ok()
}

impl View {
    fn take_in(&mut self, kind: &str, name: &str, entry: &Entry) {
        let name = name.to_owned();
        match kind {
            "nodes" => self.nodes.extend(read(entry).map(|node| (name, node))),
            "drained" => drop(self.drained.insert(name)),
            "fenced" => drop(self.fenced.insert(name)),
            "spec" => self.services.entry(name).or_default().spec = read(entry),
            "owner" => self.services.entry(name).or_default().owner = Some(Owner { node: entry.value.clone(), token: entry.created, lease: entry.lease }),
            "last" => self.services.entry(name).or_default().last = read(entry),
            "phase" => self.services.entry(name).or_default().phase = read(entry),
            "frame" => self.services.entry(name).or_default().frame = read(entry),
            "protected" => self.services.entry(name).or_default().protected = read(entry),
            "request" => self.services.entry(name).or_default().request = read(entry),
            _ => {}
        }
    }

    /// How much of a node's capacity its services take.
    pub fn load(&self, node: &str) -> u32 {
        let owned = self.services.values().filter(|service| service.owner.as_ref().is_some_and(|owner| owner.node == node));
        owned.filter_map(|service| service.spec.as_ref()).map(|spec| spec.weight).sum()
    }
}

/// A change of membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A node came.
    Up(String),
    /// A node is leaving, and means to.
    Leaving(String),
    /// A node is gone without a word.
    Dead(String),
}

/// What became of the members between two views; a node that had said that it leaves is not dead when it is gone.
pub fn membership(before: &View, after: &View) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, node) in &after.nodes {
        match before.nodes.get(name) {
            None => changes.push(Change::Up(name.clone())),
            Some(old) if node.leaving && !old.leaving => changes.push(Change::Leaving(name.clone())),
            Some(_) => {}
        }
    }
    let gone = before.nodes.iter().filter(|(name, node)| !after.nodes.contains_key(*name) && !node.leaving);
    changes.extend(gone.map(|(name, _)| Change::Dead(name.clone())));
    changes
}
