//! What all threads of an agent share: the store, the warden, what runs here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam_channel::{bounded, Receiver, Sender};
use serde::Serialize;

use super::frames::Series;
use super::{watch, News};
use crate::cluster::config::{Config, Node, Service};
use crate::cluster::net::Mac;
use crate::cluster::now_ms;
use crate::cluster::state::{Change, Guard, Lease, Revision, State};
use crate::cluster::view::{self, Keys, View};
use crate::cluster::warden::{Order, Reply, Warden};
use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::proc::Pid;

/// An instance that runs here.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its virtual node.
    pub id: u64,
    /// Its token.
    pub token: Revision,
    /// Its root process; 0 while it is being brought up.
    pub pid: Pid,
    /// The init above it.
    pub init: Pid,
    /// Its frames so far; held while one is taken.
    pub series: Arc<Mutex<Series>>,
    /// Set when its probes and frames are to end.
    pub over: Arc<AtomicBool>,
}

/// Figures for the metrics page.
#[derive(Debug, Default)]
pub struct Counts {
    /// Frames committed.
    pub frames: AtomicU64,
    /// The last frame's pause in microseconds.
    pub pause_us: AtomicU64,
    /// Takeovers: services started here that another node had before.
    pub takeovers: AtomicU64,
    /// Alerts raised.
    pub alerts: AtomicU64,
}

/// What all threads share.
pub struct Hand {
    /// The configuration.
    pub config: Config,
    /// This node.
    pub node: Node,
    /// Where the keys are.
    pub keys: Keys,
    /// The store.
    pub state: Arc<dyn State>,
    /// The warden.
    pub warden: Warden,
    /// To the main thread.
    pub(super) news: Sender<News>,
    /// The lease; 0 for none.
    pub lease: AtomicI64,
    /// The deadline that the warden was told last.
    pub until: AtomicU64,
    /// No decision is made on keys older than our own last change.
    pub floor: AtomicI64,
    /// The keys as the main thread last saw them.
    pub view: Mutex<View>,
    /// Tokens of what runs here, for the beats.
    pub holds: Mutex<BTreeSet<Revision>>,
    /// Figures.
    pub counts: Counts,
    /// Features of this processor.
    pub features: BTreeSet<String>,
    running: Mutex<BTreeMap<String, Running>>,
    waiting: Mutex<HashMap<u64, Sender<Reply>>>,
    next: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// As JSON; what we write has no value that JSON lacks.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl Hand {
    pub(super) fn new(config: &Config, node: &Node, state: Arc<dyn State>, warden: Warden, news: Sender<News>) -> Result<Hand> {
        Ok(Hand {
            keys: Keys::of(&config.cluster),
            config: config.clone(),
            node: node.clone(),
            state,
            warden,
            news,
            lease: AtomicI64::new(0),
            until: AtomicU64::new(0),
            floor: AtomicI64::new(0),
            view: Mutex::default(),
            holds: Mutex::default(),
            counts: Counts::default(),
            features: Host::here()?.cpu_features,
            running: Mutex::default(),
            waiting: Mutex::default(),
            // Virtual nodes of a former life of this agent have other numbers.
            next: AtomicU64::new(now_ms() << 16),
        })
    }

    /// One line for the journal.
    pub fn say(&self, service: &str, text: &str) {
        let about = if service.is_empty() { String::new() } else { format!(" {service}:") };
        eprintln!("stillframe: {} {}:{about} {text}", now_ms(), self.node.name);
    }

    /// A transaction of ours; no decision is made before it shows in the keys.
    pub fn commit(&self, guards: &[Guard], changes: &[Change]) -> Result<bool> {
        let made = self.state.commit(guards, changes)?;
        if let Some(revision) = made {
            self.floor.fetch_max(revision, Ordering::Relaxed);
        }
        Ok(made.is_some())
    }

    /// The guard that a service is still owned under `token`.
    pub fn owned(&self, service: &str, token: Revision) -> Guard {
        Guard::Created(self.keys.at("owner", service), token)
    }

    /// Puts this node's key, to end with the lease.
    pub fn announce_node(&self, leaving: bool) -> Result<()> {
        let lease: Lease = self.lease.load(Ordering::Relaxed);
        if lease == 0 {
            return Ok(());
        }
        let node = view::Node { capacity: self.node.capacity, features: self.features.clone(), allow_failover: self.node.allow_failover, leaving, rest: self.node.rest };
        self.commit(&[], &[Change::Put(self.keys.at("nodes", &self.node.name), json(&node), lease)]).map(drop)
    }

    /// Puts the specs that the store lacks.
    pub fn announce_specs(&self) -> Result<()> {
        for service in &self.config.services {
            let key = self.keys.at("spec", &service.name);
            self.commit(&[Guard::Absent(key.clone())], &[Change::put(key, json(service))])?;
        }
        Ok(())
    }

    /// Ends everything, and gives the lease back.
    pub fn part(&self) {
        self.warden.order(&Order::Fence);
        // The lease goes only when nothing of what it owned is left.
        let end = now_ms() + self.config.timings.ttl.as_ms();
        while !locked(&self.running).is_empty() && now_ms() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let lease = self.lease.swap(0, Ordering::Relaxed);
        if lease != 0 {
            // Without an answer it ends by itself.
            let _ = self.state.revoke(lease);
        }
        self.warden.order(&Order::Quit);
    }

    /// What runs of a service.
    pub fn running(&self, service: &str) -> Option<Running> {
        locked(&self.running).get(service).cloned()
    }

    /// Which service a virtual node is for.
    pub fn service_of(&self, id: u64) -> Option<String> {
        locked(&self.running).iter().find(|(_, running)| running.id == id).map(|(service, _)| service.clone())
    }

    /// Notes a virtual node, from its making on.
    pub fn note(&self, service: &str, running: Running) {
        locked(&self.running).insert(service.to_owned(), running);
    }

    /// A virtual node has ended; which service and token it was for.
    pub fn forget(&self, id: u64) -> Option<(String, Revision)> {
        let service = self.service_of(id)?;
        let gone = locked(&self.running).remove(&service)?;
        gone.over.store(true, Ordering::Relaxed);
        Some((service, gone.token))
    }

    /// All virtual nodes have ended.
    pub fn forget_all(&self) {
        std::mem::take(&mut *locked(&self.running)).into_values().for_each(|gone| gone.over.store(true, Ordering::Relaxed));
        locked(&self.waiting).clear();
    }

    /// A number for a virtual node, and what the warden will say of it.
    pub fn expect(&self) -> (u64, Receiver<Reply>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = bounded(16);
        locked(&self.waiting).insert(id, sender);
        (id, receiver)
    }

    /// Nobody waits for this virtual node any more.
    pub fn unexpect(&self, id: u64) {
        locked(&self.waiting).remove(&id);
    }

    /// Ends a service's virtual node and waits until nothing is left of it.
    pub fn end(&self, service: &str) -> Result<()> {
        let Some(running) = self.running(service) else { return Ok(()) };
        running.over.store(true, Ordering::Relaxed);
        self.warden.order(&Order::Kill(running.id));
        let end = now_ms() + 30_000;
        while self.service_of(running.id).is_some() {
            if now_ms() > end {
                return Err(Error::new(Kind::Busy, format!("the virtual node of {service} does not end")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The name of a service's outer interface here, and its hardware address everywhere.
    pub fn names(&self, service: &Service) -> (String, Mac) {
        let hash = |parts: &[&str]| {
            let mut hasher = DefaultHasher::new();
            parts.hash(&mut hasher);
            hasher.finish().to_be_bytes()
        };
        let mac = hash(&[&self.config.cluster, &service.name]);
        let outer: String = hash(&[&self.config.cluster, &self.node.name, &service.name])[..5].iter().map(|byte| format!("{byte:02x}")).collect();
        // Locally administered, for one receiver.
        (format!("sf{outer}"), [2, mac[0], mac[1], mac[2], mac[3], mac[4]])
    }

    /// The directory of frames.
    pub fn frames(&self) -> PathBuf {
        self.config.frames.clone()
    }
}

/// Threads that listen to the warden and to the store.
pub fn start_threads(hand: &Arc<Hand>) -> Result<()> {
    std::fs::create_dir_all(&hand.config.frames).map_err(|e| Error::io(format!("cannot create {}", hand.config.frames.display()), e))?;
    let own = hand.clone();
    std::thread::spawn(move || {
        while let Some(reply) = own.warden.reply() {
            own.hear(reply);
        }
        let _ = own.news.send(News::Bereft);
    });
    let own = hand.clone();
    std::thread::spawn(move || watch(&own));
    Ok(())
}

impl Hand {
    /// Passes on what the warden says: to whoever waits for it, and to the main thread what it must know.
    fn hear(&self, reply: Reply) {
        let id = match &reply {
            Reply::Wired { id, .. } | Reply::Runs { id, .. } | Reply::Failed { id, .. } | Reply::Ended { id, .. } => Some(*id),
            Reply::Conflict { .. } | Reply::Fenced => None,
        };
        if let Some(waiting) = id.and_then(|id| locked(&self.waiting).get(&id).cloned()) {
            let _ = waiting.try_send(reply.clone());
        }
        if matches!(reply, Reply::Ended { .. } | Reply::Conflict { .. } | Reply::Fenced) {
            let _ = self.news.send(News::Warden(reply));
        }
    }
}
