//! What an agent does next: a pure function of what the keys say, what was heard and what runs here, to a list of actions.

use std::collections::{BTreeMap, BTreeSet};

use super::config::{Failback, Service as Spec, Timings};
use super::state::{Lease, Revision};
use super::view::{Last, Request, Service, State, View};

pub mod place;
#[cfg(test)]
mod tests;

use place::{candidates, unfit};

/// Milliseconds of the boot-time clock.
pub type Moment = u64;

/// After how long a service that nobody can run is tried again where it is, in milliseconds.
const TRY_AGAIN: Moment = 10_000;

/// What only this node knows.
#[derive(Debug, Clone, Default)]
pub struct Here {
    /// Its name.
    pub me: String,
    /// Its lease; what it owned under a former one is not its own any more.
    pub lease: Lease,
    /// The time.
    pub now: Moment,
    /// Whether frames are seen by all.
    pub shared: bool,
    /// When each other node was last heard, and which tokens it said it holds.
    pub heard: BTreeMap<String, Heard>,
    /// What runs here.
    pub instances: BTreeMap<String, Instance>,
    /// Since when a service has had no owner.
    pub vacant: BTreeMap<String, Moment>,
    /// Since when an instance here has failed.
    pub failed: BTreeMap<String, Moment>,
    /// Since when each node has been up, as seen from here.
    pub up: BTreeMap<String, Moment>,
    /// Nodes that have a fence command.
    pub fenceable: BTreeSet<String>,
}

/// A node's last beat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// When.
    pub at: Moment,
    /// The tokens of what it runs.
    pub holds: BTreeSet<Revision>,
}

/// What runs here of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Under which token.
    pub token: Revision,
    /// How it does.
    pub health: Health,
    /// Failures in a row without a new frame in between.
    pub failures: u32,
    /// Something is being done about it: leave it alone.
    pub busy: bool,
}

/// How an instance does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It is being started.
    Starting,
    /// It runs.
    Running,
    /// It ended or its probes fail.
    Failed(String),
}

/// What to do.
#[allow(missing_docs)] // the names of the fields say what they are
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Try to become the owner.
    Claim(String),
    /// Start it under our token; the failures before.
    Start { service: String, token: Revision, failures: u32 },
    /// End what runs here without being ours.
    Stop { service: String, why: String },
    /// Let go of it, for others to take: it failed here for good.
    GiveUp { service: String, token: Revision, why: String },
    /// Move it with a last frame (or, if it is broken, without).
    HandOver { service: String, token: Revision, to: String, frame: bool },
    /// Write down that it can fail over, or cannot any more.
    Protect { service: String, protected: bool },
    /// Read its newest frame ahead.
    Prefetch(String),
    /// Shut a silent node off.
    Fence(String),
    /// Reset this machine: a critical service failed for good.
    Reset { service: String, why: String },
    /// Write down that nobody can run it.
    Down { service: String, why: String },
    /// An operator's request that cannot be fulfilled.
    Refuse { service: String, why: String },
    /// Take a frame now.
    Frame { service: String, token: Revision },
}

/// All that is to be done now.
pub fn decide(view: &View, here: &Here, timings: &Timings) -> Vec<Action> {
    let mut actions = Vec::new();
    // What is claimed in this round takes room as well.
    let mut claimed = 0;
    for (name, service) in &view.services {
        let turn = Turn { view, here, timings, name, service };
        match (&service.owner, &service.spec) {
            _ if here.instances.get(name).is_some_and(|instance| instance.busy) => {}
            (Some(owner), Some(spec)) if owner.node == here.me && owner.lease == here.lease => turn.own(owner.token, spec, &mut actions),
            (Some(owner), _) if owner.node == here.me && owner.lease == here.lease => actions.push(turn.give_up(owner.token, "it was removed from the configuration")),
            _ if here.instances.contains_key(name) => actions.push(turn.stop()),
            (Some(owner), Some(spec)) => turn.stand_by(&owner.node, spec, &mut actions),
            (None, Some(spec)) => {
                let action = turn.vacant(spec, claimed);
                claimed += if matches!(action, Some(Action::Claim(_))) { spec.weight } else { 0 };
                actions.extend(action);
            }
            (_, None) => {}
        }
    }
    actions
}

/// One service, in one round.
struct Turn<'a> {
    view: &'a View,
    here: &'a Here,
    timings: &'a Timings,
    name: &'a str,
    service: &'a Service,
}

impl Turn<'_> {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn stop(&self) -> Action {
        Action::Stop { service: self.name(), why: "this node does not own it".to_owned() }
    }

    fn give_up(&self, token: Revision, why: &str) -> Action {
        Action::GiveUp { service: self.name(), token, why: why.to_owned() }
    }

    /// Others that could have it now, the best first.
    fn others(&self, spec: &Spec) -> Vec<String> {
        candidates(self.view, self.here.shared, self.service, spec).into_iter().filter(|node| *node != self.here.me).collect()
    }

    /// We own it.
    fn own(&self, token: Revision, spec: &Spec, actions: &mut Vec<Action>) {
        let protected = spec.allow_failover && !self.others(spec).is_empty();
        if self.service.protected != Some(protected) {
            actions.push(Action::Protect { service: self.name(), protected });
        }
        match self.here.instances.get(self.name) {
            Some(instance) if instance.token != token => actions.push(self.stop()),
            None => actions.push(Action::Start { service: self.name(), token, failures: 0 }),
            Some(Instance { health: Health::Failed(why), failures, .. }) => match &self.service.request {
                Some(Request::Failover(to) | Request::Switchover(to)) => actions.push(self.asked(token, spec, to.as_deref(), false)),
                _ => actions.extend(self.failed(token, spec, why, *failures)),
            },
            Some(Instance { health: Health::Running, .. }) => actions.extend(self.running(token, spec)),
            Some(_) => {}
        }
    }

    /// It failed where it is: again here, or elsewhere.
    fn failed(&self, token: Revision, spec: &Spec, why: &str, failures: u32) -> Option<Action> {
        if self.view.paused {
            return None;
        }
        let elsewhere = spec.allow_failover && !self.others(spec).is_empty();
        // A planned move that does not succeed is no reason to stay.
        let back = self.service.last.as_ref().and_then(|last| last.back.clone()).filter(|back| self.others(spec).contains(back));
        if let Some(to) = back {
            return Some(Action::HandOver { service: self.name(), token, to, frame: false });
        }
        match failures {
            _ if failures < spec.restarts => Some(Action::Start { service: self.name(), token, failures: failures + 1 }),
            _ if spec.critical => Some(Action::Reset { service: self.name(), why: why.to_owned() }),
            _ if elsewhere => Some(self.give_up(token, why)),
            // Storage that was away comes back: what is down is tried again now and then.
            _ if self.service.phase.as_ref().is_some_and(|phase| phase.state == State::Down) => {
                let tired = self.here.failed.get(self.name).is_some_and(|since| self.here.now >= since + TRY_AGAIN);
                tired.then(|| Action::Start { service: self.name(), token, failures })
            }
            _ => Some(Action::Down { service: self.name(), why: format!("{why}, and nobody else can run it") }),
        }
    }

    /// It runs: what operators want of it, and where it would rather be.
    fn running(&self, token: Revision, spec: &Spec) -> Option<Action> {
        match &self.service.request {
            Some(Request::Frame) => return Some(Action::Frame { service: self.name(), token }),
            Some(Request::Switchover(to)) => return Some(self.asked(token, spec, to.as_deref(), true)),
            Some(Request::Failover(to)) => return Some(self.asked(token, spec, to.as_deref(), false)),
            None if self.view.paused => return None,
            None => {}
        }
        let move_to = |to: &String| Action::HandOver { service: self.name(), token, to: to.clone(), frame: true };
        let leaving = self.view.nodes.get(&self.here.me).is_some_and(|node| node.leaving);
        if leaving || self.view.drained.contains(&self.here.me) {
            return self.others(spec).first().map(move_to);
        }
        let home = spec.nodes.first().map(|standby| standby.node().to_owned())?;
        let settled = self.here.up.get(&home).is_some_and(|since| self.here.now >= since + spec.failback_delay.as_ms());
        (spec.failback == Failback::Auto && settled && self.others(spec).contains(&home)).then(|| move_to(&home))
    }

    fn asked(&self, token: Revision, spec: &Spec, to: Option<&str>, frame: bool) -> Action {
        let refuse = |why: String| Action::Refuse { service: self.name(), why };
        let to = match to {
            Some(to) if to == self.here.me => return refuse(format!("it is on {to} already")),
            // Whoever is named may have it although it failed there before.
            Some(to) => match unfit(self.view, self.here.shared, self.service, spec, to, true) {
                Some(why) => return refuse(format!("{to} cannot have it: {why}")),
                None => to.to_owned(),
            },
            None => match self.others(spec).first() {
                Some(to) => to.clone(),
                None => return refuse("no other node can have it".to_owned()),
            },
        };
        Action::HandOver { service: self.name(), token, to, frame }
    }

    /// Another node owns it.
    fn stand_by(&self, owner: &str, spec: &Spec, actions: &mut Vec<Action>) {
        let first = self.others_of(owner, spec).first() == Some(&self.here.me);
        let silent = self.here.heard.get(owner).is_some_and(|heard| self.here.now > heard.at + self.timings.suspect.as_ms());
        if !first || !silent || self.view.paused {
            return;
        }
        actions.push(Action::Prefetch(self.name()));
        // A short hiccup must not cost a server its life.
        let long = self.here.heard.get(owner).is_some_and(|heard| self.here.now > heard.at + 2 * self.timings.suspect.as_ms());
        let fence = Action::Fence(owner.to_owned());
        if long && self.here.fenceable.contains(owner) && !self.view.fenced.contains(owner) && !actions.contains(&fence) {
            actions.push(fence);
        }
    }

    fn others_of(&self, owner: &str, spec: &Spec) -> Vec<String> {
        candidates(self.view, self.here.shared, self.service, spec).into_iter().filter(|node| node != owner).collect()
    }

    /// Nobody owns it: whether it is ours to claim, and when.
    fn vacant(&self, spec: &Spec, claimed: u32) -> Option<Action> {
        let order = candidates(self.view, self.here.shared, self.service, spec);
        let Some(rank) = order.iter().position(|node| *node == self.here.me) else {
            return self.down(&order);
        };
        let own = self.view.nodes.get(&self.here.me)?;
        let full = self.view.load(&self.here.me) + claimed + spec.weight > own.capacity;
        if self.view.paused || full || self.here.now < self.due(spec, rank) {
            return None;
        }
        Some(Action::Claim(self.name()))
    }

    /// When the candidate of this rank may claim.
    fn due(&self, spec: &Spec, rank: usize) -> Moment {
        let since = self.here.vacant.get(self.name).copied().unwrap_or(self.here.now);
        let in_turn = since + rank as u64 * self.timings.stagger.as_ms();
        let Some(last) = &self.service.last else {
            // At its first start it waits a while for the servers that it prefers.
            let place = spec.nodes.iter().position(|standby| standby.node() == self.here.me).unwrap_or(0);
            return since + place as u64 * self.timings.ttl.as_ms();
        };
        match &last.next {
            Some(next) if *next == self.here.me => since,
            Some(next) if self.view.nodes.contains_key(next) => in_turn + spec.switchover_limit.as_ms(),
            _ => in_turn.max(self.certain(last)),
        }
    }

    /// When it is certain that nothing of the last owner runs any more.
    fn certain(&self, last: &Last) -> Moment {
        if last.released || last.node == self.here.me || self.view.fenced.contains(&last.node) {
            return 0;
        }
        // A store may end a lease too early (a stalled leader of etcd does): what was heard directly counts.
        match self.here.heard.get(&last.node) {
            Some(heard) if !heard.holds.is_empty() => heard.at + self.timings.ttl.as_ms(),
            _ => 0,
        }
    }

    /// Nobody can have it: the member that comes first by name says so, once.
    fn down(&self, order: &[String]) -> Option<Action> {
        let said = self.service.phase.as_ref().is_some_and(|phase| phase.state == State::Down);
        let duty = self.view.nodes.keys().next() == Some(&self.here.me);
        // While members join, a preferred server may still be on its way.
        let patient = self.here.vacant.get(self.name).is_some_and(|since| self.here.now < since + self.timings.ttl.as_ms());
        (order.is_empty() && duty && !said && !patient).then(|| Action::Down { service: self.name(), why: "no node can run it".to_owned() })
    }
}
