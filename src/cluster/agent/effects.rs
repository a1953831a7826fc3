//! Carrying out decisions: each in a thread of its own, one at a time for each service.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use nix::sys::signal::{kill, killpg, Signal};

use super::frames;
use super::hand::{json, Hand, Running};
use super::monitor;
use super::tell;
use crate::checkpoint::Then;
use crate::cluster::client::Endpoint;
use crate::cluster::config::{Meanwhile, Service as Spec};
use crate::cluster::decide::Action;
use crate::cluster::operate;
use crate::cluster::state::{Change, Guard, Revision};
use crate::cluster::view::{Last, Phase, Service, State, View};
use crate::cluster::vnode::{self, Wire};
use crate::cluster::warden::{Order, Reply};
use crate::error::{Context, Error, Kind, Result};

/// What became of an effect.
pub enum Outcome {
    /// Nothing that concerns the instance.
    Nothing,
    /// The instance runs, in this virtual node.
    Runs(u64),
    /// The instance does not run.
    Failed(String),
    /// There is no instance any more.
    Gone,
}

/// An action at work.
pub struct Job<'a> {
    pub hand: &'a Arc<Hand>,
    /// What it was decided upon.
    pub view: &'a View,
}

/// How long the parts of a start may take.
const WIRING: Duration = Duration::from_secs(20);
const RESTORING: Duration = Duration::from_secs(600);
const WARM_UP: Duration = Duration::from_secs(60);

impl Job<'_> {
    /// Carries it out.
    pub fn perform(&self, action: &Action) -> Outcome {
        let done = match action {
            Action::Claim(service) => self.claim(service),
            Action::Start { service, token, failures } => return self.start_or_fail(service, *token, *failures),
            Action::Stop { service, why } => self.stop(service, why),
            Action::GiveUp { service, token, why } => self.give_up(service, *token, why),
            Action::HandOver { service, token, to, frame } => return self.hand_over(service, *token, to, *frame),
            Action::Protect { service, protected } => self.protect(service, *protected),
            Action::Prefetch(service) => self.prefetch(service),
            Action::Fence(node) => self.fence(node),
            Action::Reset { service, why } => self.reset(service, why),
            Action::Down { service, why } => self.down(service, why),
            Action::Refuse { service, why } => self.refuse(service, why),
            Action::Frame { service, token } => self.frame(service, *token),
        };
        done.unwrap_or_else(|e| Outcome::Failed(e.to_string()))
    }

    fn service(&self, service: &str) -> Result<&Service> {
        self.view.services.get(service).ok_or_else(|| Error::new(Kind::NotFound, format!("there is no service {service}")))
    }

    fn spec(&self, service: &str) -> Result<&Spec> {
        self.service(service)?.spec.as_ref().ok_or_else(|| Error::new(Kind::NotFound, format!("service {service} was removed")))
    }

    fn last(&self, service: &str) -> Last {
        self.view.services.get(service).and_then(|service| service.last.clone()).unwrap_or_default()
    }

    fn phase(&self, service: &str, state: State, why: &str) -> Change {
        Change::put(self.hand.keys.at("phase", service), json(&Phase { state, node: self.hand.node.name.clone(), why: why.to_owned() }))
    }

    fn put_last(&self, service: &str, last: &Last) -> Change {
        Change::put(self.hand.keys.at("last", service), json(last))
    }

    fn claim(&self, service: &str) -> Result<Outcome> {
        let (owner, me) = (self.hand.keys.at("owner", service), self.hand.node.name.clone());
        let before = self.last(service);
        let (moved, named) = (!before.node.is_empty() && before.node != me, before.next.as_ref() == Some(&me));
        let mut last = Last { node: me.clone(), released: false, next: None, avoid: before.avoid, back: before.back.filter(|_| named) };
        if named {
            last.avoid.remove(&me);
        }
        let lease = self.hand.lease.load(Ordering::Relaxed);
        let why = if moved { format!("from {}", before.node) } else { String::new() };
        let changes = [Change::Put(owner.clone(), me, lease), self.put_last(service, &last), self.phase(service, State::Restoring, &why)];
        if lease != 0 && self.hand.commit(&[Guard::Absent(owner)], &changes)? {
            self.hand.counts.takeovers.fetch_add(u64::from(moved), Ordering::Relaxed);
            tell::history(self.hand, service, "claimed", &why);
        }
        Ok(Outcome::Nothing)
    }

    fn start_or_fail(&self, service: &str, token: Revision, failures: u32) -> Outcome {
        match self.start(service, token) {
            Ok(id) => Outcome::Runs(id),
            Err(e) => {
                if self.last(service).back.is_some() {
                    tell::history(self.hand, service, "switchover abandoned", &e.to_string());
                }
                // A moment between attempts, longer each time.
                std::thread::sleep(Duration::from_millis(100) * failures);
                let _ = self.hand.end(service);
                Outcome::Failed(e.to_string())
            }
        }
    }

    /// Makes the virtual node, brings the service up in it, and waits until its probes pass.
    fn start(&self, service: &str, token: Revision) -> Result<u64> {
        let spec = self.spec(service)?;
        self.hand.end(service)?;
        // The store has the last word on whether it is ours, whatever was seen before.
        if !self.hand.commit(&[self.hand.owned(service, token)], &[self.phase(service, State::Restoring, "")])? {
            return Err(lost(service));
        }
        let paths = frames::paths(self.hand, service, self.service(service)?.frame.as_ref())?;
        let mut tries: Vec<Option<PathBuf>> = paths.into_iter().map(Some).collect();
        if tries.is_empty() {
            tries.push(None);
        }
        let (mut why, limit) = (None, self.limit(spec));
        for path in tries {
            match self.make(spec, token, path.clone(), limit) {
                Ok((running, took)) => return self.serve(spec, running, path.is_some(), &took, limit),
                // An older frame may be whole.
                Err(e) if e.kind() == Kind::Corrupt => {
                    tell::alert(self.hand, "damaged-frame", service, &e.to_string());
                    self.hand.end(service)?;
                    why = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(why.unwrap_or_else(|| Error::corrupt(format!("no frame of {service} is whole"))))
    }

    /// When a planned move is given up.
    fn limit(&self, spec: &Spec) -> Option<Instant> {
        self.last(&spec.name).back.map(|_| Instant::now() + spec.switchover_limit.0)
    }

    /// The running instance, and how long its parts took.
    fn make(&self, spec: &Spec, token: Revision, frame: Option<PathBuf>, limit: Option<Instant>) -> Result<(Running, String)> {
        let (id, replies) = self.hand.expect();
        let mut running = Running { id, token, pid: 0, init: 0, series: Arc::default(), over: Arc::new(AtomicBool::new(false)) };
        self.hand.note(&spec.name, running.clone());
        let begun = Instant::now();
        self.hand.warden.order(&Order::Make(Box::new(self.vnode(spec, id)?)));
        let made = (|| {
            heard(&replies, within(limit, WIRING), |reply| matches!(reply, Reply::Wired { .. }).then_some(()))?;
            self.hand.warden.order(&Order::Tend(id));
            if spec.address.is_some() {
                self.hand.say(&spec.name, "its address is announced");
            }
            let wired = begun.elapsed();
            if let Some(mount) = &spec.mount {
                hook(&self.hand.node.name, mount, &spec.name, "mount", limit)?;
            }
            let mounted = begun.elapsed();
            self.hand.warden.order(&Order::Go(id, frame));
            let (pid, init, notes) = heard(&replies, within(limit, RESTORING), |reply| match reply {
                Reply::Runs { pid, init, notes, .. } => Some((*pid, *init, notes.clone())),
                _ => None,
            })?;
            let took = format!("address {} ms, mount {} ms, program {} ms", wired.as_millis(), (mounted - wired).as_millis(), (begun.elapsed() - mounted).as_millis());
            Ok((pid, init, notes, took))
        })();
        self.hand.unexpect(id);
        let (pid, init, notes, took) = made?;
        notes.iter().for_each(|note| self.hand.say(&spec.name, note));
        (running.pid, running.init) = (pid, init);
        // It may have ended in between: then nobody may take it for alive.
        match self.hand.running(&spec.name) {
            Some(current) if current.id == id => self.hand.note(&spec.name, running.clone()),
            _ => return Err(Error::new(Kind::TargetGone, "it ended as soon as it ran")),
        }
        Ok((running, took))
    }

    fn vnode(&self, spec: &Spec, id: u64) -> Result<vnode::Spec> {
        let hand = self.hand;
        let (outer, mac) = hand.names(spec);
        let clients = self.service(&spec.name)?.frame.as_ref().map_or(Vec::new(), |frame| frame.clients.clone());
        let seconds = hand.config.timings.deadline().as_secs().max(1) as u32;
        let wire = spec.address.map(|address| {
            let (bridge, hold) = (hand.node.interface.clone().unwrap_or_default(), spec.meanwhile == Meanwhile::Hold);
            Wire { address, gateway: spec.gateway, bridge, outer, mac, seconds, hold, http: spec.http.clone(), second: spec.second.clone(), clients }
        });
        Ok(vnode::Spec {
            id,
            service: spec.name.clone(),
            command: spec.command.clone(),
            pid_file: spec.pid_file.clone(),
            log: hand.frames().join(format!("{}.log", spec.name)),
            wire,
            cgroup: format!("stillframe.{}.{}.{}", hand.config.cluster, hand.node.name, spec.name),
            memory_max: spec.memory_max,
            lazy: spec.lazy,
        })
    }

    /// It runs: probes, frames, and the word that it does.
    fn serve(&self, spec: &Spec, running: Running, resumed: bool, took: &str, limit: Option<Instant>) -> Result<u64> {
        let begun = Instant::now();
        monitor::await_healthy(self.hand, spec, &running, within(limit, WARM_UP))?;
        let probes = begun.elapsed();
        let how = if resumed { "resumed" } else { "started" };
        let endpoint = Endpoint { owner: Some(self.hand.node.name.clone()), address: spec.address.map(|address| address.ip), second: spec.second.clone() };
        let mut changes = vec![self.phase(&spec.name, State::Running, how), Change::put(self.hand.keys.at("endpoint", &spec.name), json(&endpoint))];
        let last = self.last(&spec.name);
        if last.back.is_some() {
            // The move is done: what fails from now on is no part of it.
            changes.push(self.put_last(&spec.name, &Last { back: None, ..last }));
        }
        if !self.hand.commit(&[self.hand.owned(&spec.name, running.token)], &changes)? {
            return Err(lost(&spec.name));
        }
        monitor::start(self.hand, spec, &running);
        frames::start(self.hand, spec, &running);
        tell::history(self.hand, &spec.name, how, &format!("{took}, probes {} ms", probes.as_millis()));
        Ok(running.id)
    }

    /// Ends what runs here, and lets its storage go.
    fn end(&self, service: &str) -> Result<()> {
        self.hand.end(service)?;
        match self.spec(service).ok().and_then(|spec| spec.unmount.as_ref()) {
            Some(unmount) => hook(&self.hand.node.name, unmount, service, "unmount", None),
            None => Ok(()),
        }
    }

    fn stop(&self, service: &str, why: &str) -> Result<Outcome> {
        self.end(service)?;
        self.hand.say(service, &format!("stopped: {why}"));
        Ok(Outcome::Gone)
    }

    /// Deletes the owner's key and says who may come next, in one transaction.
    fn release(&self, service: &str, token: Revision, last: Last, more: Vec<Change>) -> Result<bool> {
        let mut changes = vec![Change::Delete(self.hand.keys.at("owner", service)), self.put_last(service, &last), Change::Delete(self.hand.keys.at("request", service)), Change::Delete(self.hand.keys.at("endpoint", service))];
        changes.extend(more);
        self.hand.commit(&[self.hand.owned(service, token)], &changes)
    }

    fn give_up(&self, service: &str, token: Revision, why: &str) -> Result<Outcome> {
        self.end(service)?;
        let me = self.hand.node.name.clone();
        let mut avoid = self.last(service).avoid;
        avoid.insert(me.clone());
        self.release(service, token, Last { node: me, released: true, avoid, ..Last::default() }, vec![self.phase(service, State::Failed, why)])?;
        tell::alert(self.hand, "failed", service, &format!("{service} failed here for good: {why}"));
        Ok(Outcome::Gone)
    }

    /// A planned move: last frame, end, release to its new owner. What fails before the end leaves it running here.
    fn hand_over(&self, service: &str, token: Revision, to: &str, frame: bool) -> Outcome {
        let begun = crate::cluster::now_ms();
        let running = self.hand.running(service);
        let back = running.as_ref().map_or(Outcome::Failed("it is not running".to_owned()), |running| Outcome::Runs(running.id));
        if let Err(e) = self.part(service, token, running.as_ref(), frame) {
            let undone = [self.phase(service, State::Running, "a switchover was abandoned"), Change::Delete(self.hand.keys.at("request", service))];
            let _ = self.hand.commit(&[self.hand.owned(service, token)], &undone);
            tell::history(self.hand, service, "switchover abandoned", &e.to_string());
            return back;
        }
        let ended = self.end(service);
        let me = self.hand.node.name.clone();
        let last = Last { node: me.clone(), released: true, next: Some(to.to_owned()), avoid: self.last(service).avoid, back: frame.then_some(me) };
        match ended.and_then(|()| self.release(service, token, last, Vec::new())) {
            Ok(_) => {
                tell::history(self.hand, service, if frame { "handed over" } else { "moved" }, &format!("to {to}, {} ms here", crate::cluster::now_ms() - begun));
                Outcome::Gone
            }
            Err(e) => Outcome::Failed(e.to_string()),
        }
    }

    fn part(&self, service: &str, token: Revision, running: Option<&Running>, frame: bool) -> Result<()> {
        let (Some(running), true) = (running, frame) else { return Ok(()) };
        if !self.hand.commit(&[self.hand.owned(service, token)], &[self.phase(service, State::HandingOver, "")])? {
            return Err(lost(service));
        }
        let mut series = running.series.lock().unwrap_or_else(|e| e.into_inner());
        let taken = frames::take(self.hand, self.spec(service)?, running, &mut series, Then::Stop);
        match taken {
            // Its probes and frames end with it.
            Ok(()) => running.over.store(true, Ordering::Relaxed),
            // Stopped or not, it runs on.
            Err(_) => {
                for pid in frames::tree(running.pid) {
                    // It may have ended in between.
                    let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT);
                }
            }
        }
        taken
    }

    fn protect(&self, service: &str, protected: bool) -> Result<Outcome> {
        let before = self.service(service)?.protected;
        let key = self.hand.keys.at("protected", service);
        let owner = self.service(service)?.owner.as_ref().map_or(0, |owner| owner.token);
        let made = self.hand.commit(&[self.hand.owned(service, owner)], &[Change::put(key, protected.to_string())])?;
        match (made, protected) {
            (true, false) => tell::alert(self.hand, "no-further-failover", service, &format!("{service} runs, but no further failover is possible: no other node can take it over")),
            (true, true) if before == Some(false) => tell::history(self.hand, service, "protected", "another node can take it over again"),
            _ => {}
        }
        Ok(Outcome::Nothing)
    }

    fn prefetch(&self, service: &str) -> Result<Outcome> {
        let paths = frames::paths(self.hand, service, self.service(service)?.frame.as_ref())?;
        // The newest one builds upon others beside it.
        let beside = paths.first().and_then(|newest| newest.parent().map(Path::to_owned));
        for path in paths.into_iter().filter(|path| path.parent() == beside.as_deref()) {
            let mut file = std::fs::File::open(&path).at("open", &path)?;
            std::io::copy(&mut file, &mut std::io::sink()).at("read", &path)?;
        }
        // The owner may stay silent for long: once a second is enough.
        std::thread::sleep(Duration::from_secs(1));
        Ok(Outcome::Nothing)
    }

    /// Shuts a silent node off, and then takes its keys away.
    fn fence(&self, node: &str) -> Result<Outcome> {
        let command = self.hand.config.nodes.iter().find(|other| other.name == node).and_then(|other| other.fence.clone());
        let Some(command) = command else { return Ok(Outcome::Nothing) };
        tell::history(self.hand, "", "fencing", node);
        if let Err(e) = hook(&self.hand.node.name, &command, node, "fence", None) {
            tell::alert(self.hand, "fence-failed", "", &format!("node {node} could not be shut off: {e}"));
            std::thread::sleep(Duration::from_secs(2));
            return Ok(Outcome::Nothing);
        }
        operate::fence(&*self.hand.state, &self.hand.keys, node)?;
        tell::alert(self.hand, "fenced", "", &format!("node {node} was shut off"));
        Ok(Outcome::Nothing)
    }

    /// The service stays down here; whoever resets this machine gives it to another one.
    fn reset(&self, service: &str, why: &str) -> Result<Outcome> {
        tell::alert(self.hand, "reset", service, &format!("{service} is critical and failed for good ({why}): this node is reset"));
        if let Some(reset) = &self.hand.node.reset {
            hook(&self.hand.node.name, reset, service, "reset", None)?;
        }
        // Neither the command nor the lack of one may leave it with us.
        let token = self.service(service)?.owner.as_ref().map_or(0, |owner| owner.token);
        self.give_up(service, token, why)
    }

    fn down(&self, service: &str, why: &str) -> Result<Outcome> {
        let owner = match &self.service(service)?.owner {
            Some(owner) => self.hand.owned(service, owner.token),
            None => Guard::Absent(self.hand.keys.at("owner", service)),
        };
        if self.hand.commit(&[owner], &[self.phase(service, State::Down, why)])? {
            tell::alert(self.hand, "down", service, &format!("{service} is down: {why}"));
        }
        Ok(Outcome::Nothing)
    }

    fn refuse(&self, service: &str, why: &str) -> Result<Outcome> {
        self.hand.commit(&[], &[Change::Delete(self.hand.keys.at("request", service))])?;
        tell::history(self.hand, service, "refused", why);
        Ok(Outcome::Nothing)
    }

    fn frame(&self, service: &str, token: Revision) -> Result<Outcome> {
        let taken = match self.hand.running(service) {
            Some(running) if running.token == token => {
                let mut series = running.series.lock().unwrap_or_else(|e| e.into_inner());
                frames::take(self.hand, self.spec(service)?, &running, &mut series, Then::Run)
            }
            _ => Err(Error::new(Kind::TargetGone, "it is not running")),
        };
        self.hand.commit(&[], &[Change::Delete(self.hand.keys.at("request", service))])?;
        if let Err(e) = taken {
            tell::history(self.hand, service, "no frame", &e.to_string());
        }
        Ok(Outcome::Nothing)
    }
}

fn lost(service: &str) -> Error {
    Error::refused(format!("this node does not own {service} any more"))
}

/// Waits for what `wanted` picks out of the warden's replies.
fn heard<T>(replies: &Receiver<Reply>, patience: Duration, wanted: impl Fn(&Reply) -> Option<T>) -> Result<T> {
    loop {
        match replies.recv_timeout(patience) {
            Ok(Reply::Failed { why, corrupt: true, .. }) => return Err(Error::corrupt(why)),
            Ok(Reply::Failed { why, .. } | Reply::Ended { why, .. }) => return Err(Error::new(Kind::Refused, why)),
            Ok(reply) => match wanted(&reply) {
                Some(found) => return Ok(found),
                None => continue,
            },
            Err(_) => return Err(Error::new(Kind::Busy, "the virtual node does not come up in time, or the lease ran out")),
        }
    }
}

/// What is left until `limit`, `usual` at most.
fn within(limit: Option<Instant>, usual: Duration) -> Duration {
    limit.map_or(usual, |limit| limit.saturating_duration_since(Instant::now()).min(usual))
}

/// Runs an operator's command on `node`; at `limit` it is ended, with all that it has started.
fn hook(node: &str, command: &str, what: &str, event: &str, limit: Option<Instant>) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).process_group(0);
    shell.envs([("STILLFRAME_EVENT", event), ("STILLFRAME_ABOUT", what), ("STILLFRAME_NODE", node)]);
    let mut child = shell.spawn().context(format_args!("cannot start a shell for the {event} command"))?;
    let status = loop {
        let ended = if limit.is_some() { child.try_wait() } else { child.wait().map(Some) };
        match ended.context(format_args!("cannot wait for the {event} command"))? {
            Some(status) => break status,
            None if limit.is_some_and(|limit| Instant::now() > limit) => {
                // It may have ended just now.
                let _ = killpg(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGKILL);
                let _ = child.wait();
                return Err(Error::new(Kind::Busy, format!("the {event} command {command:?} takes longer than the switchover_limit of {what}")));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    if status.success() {
        return Ok(());
    }
    Err(Error::new(Kind::Io, format!("the {event} command {command:?} failed: {status}")))
}
