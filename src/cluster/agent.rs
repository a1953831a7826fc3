//! The agent of a node: keys and beats make a view, the view makes decisions, decisions are carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{unbounded, Receiver};

use super::config::{Config, Node, Store};
use super::decide::{decide, Action, Health, Here, Instance};
use super::now_ms;
use super::state::{self, etcd::Etcd, local::Local, Event, Revision, Snapshot, State};
use super::view::{membership, Change, Mirror, View};
use super::warden::{Reply, Warden};
use crate::error::Result;

mod beats;
mod door;
mod effects;
mod frames;
mod groups;
mod hand;
mod keeper;
mod monitor;
pub mod tell;

use effects::{Job, Outcome};
use hand::Hand;

/// How often an agent looks around when nothing happens.
const TICK: Duration = Duration::from_millis(20);

/// What threads tell the main one.
enum News {
    /// The keys as of now.
    Fresh(Snapshot),
    /// What changed.
    Keys(Vec<Event>),
    /// The lease is ours.
    Joined,
    /// The lease is lost; the warden ends what it owned.
    Lost,
    /// The warden says something that nobody waits for.
    Warden(Reply),
    /// The warden is gone, and all virtual nodes with it.
    Bereft,
    /// An effect is done.
    Done(String, Outcome),
    /// A probe says that this instance fails.
    Unwell { service: String, token: Revision, why: String },
    /// A frame of this instance is committed.
    Framed { service: String },
    /// A signal asks us to leave.
    Leave,
}

/// The store that a configuration names; `patience` bounds each request to each member. The member on `node` itself comes first.
pub fn open_store(config: &Config, node: Option<&Node>, patience: Duration) -> Result<Arc<dyn State>> {
    let beside = |url: &String| node.is_some_and(|node| url.contains(&format!("//{}:", node.beats.ip())));
    Ok(match &config.store {
        Store::Etcd(endpoints) => {
            let mut endpoints = endpoints.clone();
            endpoints.sort_by_key(|url| !beside(url));
            Arc::new(Etcd::new(&endpoints, patience))
        }
        Store::Local(path) => Arc::new(Local::open(path)?),
    })
}

/// Runs the agent of `node` until a signal asks it to leave; returns its exit status. The caller must have a single thread.
pub fn run(config: &Config, node: &Node) -> Result<i32> {
    let signals = keeper::block_signals()?;
    let warden = Warden::start(node.watchdog.as_deref(), config.timings.ttl.0)?;
    let state = open_store(config, Some(node), config.timings.ttl.0 / 2)?;
    let (sender, news) = unbounded();
    let hand = Arc::new(Hand::new(config, node, state, warden, sender)?);
    let heard = beats::start(&hand)?;
    hand::start_threads(&hand)?;
    keeper::start(&hand, open_store(config, Some(node), config.timings.renew.0)?);
    keeper::watch_signals(&hand, signals);
    door::start(&hand)?;
    let here = Here { me: node.name.clone(), shared: config.shared, ..Here::default() };
    let mut agent = Agent { hand, heard, news, here, mirror: Mirror::default(), view: View::default(), inflight: BTreeSet::new(), joined: false, leaving: None };
    agent.here.fenceable = config.nodes.iter().filter(|other| other.fence.is_some()).map(|other| other.name.clone()).collect();
    agent.live();
    agent.hand.part();
    Ok(0)
}

struct Agent {
    hand: Arc<Hand>,
    heard: beats::Heards,
    news: Receiver<News>,
    here: Here,
    mirror: Mirror,
    view: View,
    /// What is being done, by service (or node, for a fence).
    inflight: BTreeSet<String>,
    joined: bool,
    /// Since when it is leaving.
    leaving: Option<Instant>,
}

impl Agent {
    /// Until it has left.
    fn live(&mut self) {
        loop {
            match self.news.recv_timeout(TICK) {
                Ok(News::Bereft) => {
                    self.hand.say("", "the warden is gone; so are all virtual nodes");
                    return;
                }
                Ok(news) => self.hear(news),
                Err(_) => {}
            }
            // All that has come belongs to one view.
            while let Ok(news) = self.news.try_recv() {
                self.hear(news);
            }
            self.look();
            if self.left() {
                return;
            }
            // What was seen before a deadline that has passed is no ground to act on.
            let owns = self.joined && now_ms() < self.hand.until.load(Ordering::Relaxed);
            if owns && self.mirror.revision >= self.hand.floor.load(Ordering::Relaxed) {
                self.act();
            }
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Fresh(snapshot) => self.renew(Mirror::of(snapshot)),
            News::Keys(events) => {
                let mut mirror = std::mem::take(&mut self.mirror);
                events.iter().for_each(|event| mirror.apply(event));
                self.renew(mirror);
            }
            News::Joined => self.joined = true,
            News::Lost => self.joined = false,
            News::Warden(reply) => self.hear_warden(reply),
            News::Done(what, outcome) => self.done(&what, outcome),
            News::Unwell { service, token, why } => {
                let instance = self.here.instances.get_mut(&service).filter(|instance| instance.token == token && instance.health == Health::Running);
                if let Some(instance) = instance {
                    self.hand.say(&service, &format!("unwell: {why}"));
                    instance.health = Health::Failed(why);
                }
            }
            News::Framed { service } => {
                if let Some(instance) = self.here.instances.get_mut(&service) {
                    instance.failures = 0;
                }
            }
            News::Leave => self.leave(),
            News::Bereft => {}
        }
    }

    /// Takes a newer view, and tells who came and went.
    fn renew(&mut self, mirror: Mirror) {
        let view = mirror.view(&self.hand.keys);
        // At first all are new, and nobody came.
        let known = !self.view.nodes.is_empty();
        let changes = if known { membership(&self.view, &view) } else { Vec::new() };
        for change in changes {
            let (event, node) = match change {
                Change::Up(node) => ("up", node),
                Change::Leaving(node) => ("leaving", node),
                Change::Dead(node) => ("dead", node),
            };
            tell::notify(&self.hand, event, &node);
        }
        self.mirror = mirror;
        self.view = view;
        *self.hand.view.lock().unwrap_or_else(|e| e.into_inner()) = self.view.clone();
        let now = now_ms();
        let vacant: Vec<String> = self.view.services.iter().filter(|(_, service)| service.owner.is_none()).map(|(name, _)| name.clone()).collect();
        vacant.iter().filter(|name| !self.here.vacant.contains_key(*name)).for_each(|name| self.hand.say(name, "has no owner"));
        self.here.vacant = vacant.into_iter().map(|name| { let since = self.here.vacant.get(&name).copied().unwrap_or(now); (name, since) }).collect();
        self.here.up = self.view.nodes.keys().map(|name| (name.clone(), self.here.up.get(name).copied().unwrap_or(now))).collect();
    }

    fn hear_warden(&mut self, reply: Reply) {
        match reply {
            Reply::Ended { id, why } => {
                let Some((service, token)) = self.hand.forget(id) else { return };
                self.hand.say(&service, &format!("ended: {why}"));
                if let Some(instance) = self.here.instances.get_mut(&service).filter(|instance| instance.token == token) {
                    instance.health = Health::Failed(why);
                }
            }
            Reply::Fenced => {
                self.hand.say("", "the lease ran out: everything here was ended");
                self.hand.forget_all();
                self.here.instances.clear();
            }
            Reply::Conflict { id, mac } => {
                let service = self.hand.service_of(id).unwrap_or_default();
                let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
                tell::alert(&self.hand, "conflict", &service, &format!("{mac} claims the address of {service} as well"));
            }
            _ => {}
        }
    }

    fn done(&mut self, what: &str, outcome: Outcome) {
        self.inflight.remove(what);
        let instance = self.here.instances.get_mut(what);
        match (outcome, instance) {
            (Outcome::Runs(id), Some(instance)) if self.hand.running(what).is_some_and(|running| running.id == id) => instance.health = Health::Running,
            (Outcome::Runs(_), Some(instance)) => instance.health = Health::Failed("it ended as soon as it ran".to_owned()),
            (Outcome::Failed(why), Some(instance)) => {
                self.hand.say(what, &format!("failed: {why}"));
                instance.health = Health::Failed(why);
            }
            (Outcome::Failed(why), None) => self.hand.say(what, &format!("failed: {why}")),
            (Outcome::Gone, _) => drop(self.here.instances.remove(what)),
            _ => {}
        }
    }

    /// What changes without a word.
    fn look(&mut self) {
        self.here.now = now_ms();
        self.here.lease = self.hand.lease.load(Ordering::Relaxed);
        self.here.heard = self.heard.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let failed = self.here.instances.iter().filter(|(_, instance)| matches!(instance.health, Health::Failed(_)));
        self.here.failed = failed.map(|(name, _)| (name.clone(), self.here.failed.get(name).copied().unwrap_or(self.here.now))).collect();
        let tokens = self.here.instances.values().map(|instance| instance.token).collect();
        *self.hand.holds.lock().unwrap_or_else(|e| e.into_inner()) = tokens;
    }

    fn act(&mut self) {
        for action in decide(&self.view, &self.here, &self.hand.config.timings) {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        let what = match &action {
            Action::Fence(node) => format!("fence {node}"),
            Action::Prefetch(service) => format!("prefetch {service}"),
            Action::Protect { service, .. } => format!("protect {service}"),
            Action::Claim(service) | Action::Start { service, .. } | Action::Stop { service, .. } | Action::GiveUp { service, .. } | Action::HandOver { service, .. } => service.clone(),
            Action::Reset { service, .. } | Action::Down { service, .. } | Action::Refuse { service, .. } | Action::Frame { service, .. } => service.clone(),
        };
        if !self.inflight.insert(what.clone()) {
            return;
        }
        if let Action::Start { service, token, failures } = &action {
            let instance = Instance { token: *token, health: Health::Starting, failures: *failures, busy: false };
            self.here.instances.insert(service.clone(), instance);
            self.look();
        }
        let (hand, view) = (self.hand.clone(), self.view.clone());
        std::thread::spawn(move || {
            let outcome = Job { hand: &hand, view: &view }.perform(&action);
            // The main thread is gone only when all is over.
            let _ = hand.news.send(News::Done(what, outcome));
        });
    }

    /// Says that this node leaves, so that others take over what runs here.
    fn leave(&mut self) {
        if self.leaving.is_none() {
            self.leaving = Some(Instant::now());
            self.hand.say("", "leaving");
            if let Err(e) = self.hand.announce_node(true) {
                self.hand.say("", &format!("cannot say that it leaves: {e}"));
            }
        }
    }

    /// Whether nothing runs here any more, or nobody takes it.
    fn left(&mut self) -> bool {
        const PATIENCE: Duration = Duration::from_secs(60);
        let Some(since) = self.leaving else { return false };
        // A moment for decisions that follow from the leaving itself.
        let settled = since.elapsed() > Duration::from_millis(500) && self.inflight.is_empty();
        let stranded: BTreeMap<_, _> = self.here.instances.iter().filter(|(_, instance)| instance.health == Health::Running).collect();
        if settled && !stranded.is_empty() && self.joined {
            // Nobody took them: they stop with a last frame, and come back with this node.
            let actions: Vec<Action> = stranded.iter().map(|(service, instance)| Action::HandOver { service: (*service).clone(), token: instance.token, to: self.here.me.clone(), frame: true }).collect();
            actions.into_iter().for_each(|action| self.perform(action));
            return false;
        }
        (settled && stranded.is_empty()) || since.elapsed() > PATIENCE
    }
}

/// Follows the keys, for good.
fn watch(hand: &Hand) {
    loop {
        let followed = hand.state.range(hand.keys.prefix()).and_then(|snapshot| {
            let mut after = snapshot.revision;
            let _ = hand.news.send(News::Fresh(snapshot));
            let mut watch: Box<dyn state::Watch> = hand.state.watch(hand.keys.prefix(), after)?;
            loop {
                let events = watch.next()?;
                after = events.last().map_or(after, |event| event.revision);
                if !events.is_empty() && hand.news.send(News::Keys(events)).is_err() {
                    return Ok(());
                }
            }
        });
        if followed.is_ok() {
            return;
        }
        // A watch ends every few seconds; a store that is away is asked again soon.
        std::thread::sleep(Duration::from_millis(10));
    }
}
