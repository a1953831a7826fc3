//! What operators do: look, ask, pause, drain, apply. It works through the store, from any machine that reaches it.

use std::time::{Duration, Instant};

use serde_json::{json, Value};

use super::agent::tell::Past;
use super::config::{Config, Service as Spec};
use super::decide::place::{candidates, unfit};
use super::state::{Change, Guard, State};
use super::view::{Keys, Mirror, Request, Service, State as Phase, View};
use crate::error::{Error, Kind, Result};

/// The cluster as it is now.
pub fn view(state: &dyn State, keys: &Keys) -> Result<View> {
    Ok(Mirror::of(state.range(keys.prefix())?).view(keys))
}

/// The same for programs.
pub fn as_json(view: &View) -> Value {
    let nodes = view.nodes.iter().map(|(name, node)| {
        let (drained, load) = (view.drained.contains(name), view.load(name));
        json!({ "node": name, "leaving": node.leaving, "drained": drained, "load": load, "capacity": node.capacity, "rest": node.rest })
    });
    let services = view.services.iter().filter(|(_, service)| service.spec.is_some() || service.owner.is_some()).map(|(name, service)| {
        let frame = service.frame.as_ref().map(|frame| json!({ "token": frame.token, "seq": frame.seq, "taken_ns": frame.taken_ns, "node": frame.node }));
        let standbys = service.spec.iter().flat_map(|spec| &spec.nodes).map(|standby| json!({ "node": standby.node(), "role": standby.role() }));
        json!({
            "service": name,
            "standbys": standbys.collect::<Vec<_>>(),
            "owner": service.owner.as_ref().map(|owner| &owner.node),
            "token": service.owner.as_ref().map(|owner| owner.token),
            "phase": service.phase.as_ref().map(|phase| phase.state),
            "why": service.phase.as_ref().map(|phase| &phase.why),
            "protected": service.protected,
            "address": service.spec.as_ref().and_then(|spec| spec.address),
            "frame": frame,
        })
    });
    json!({ "paused": view.paused, "fenced": view.fenced, "nodes": nodes.collect::<Vec<_>>(), "services": services.collect::<Vec<_>>() })
}

/// What happened, the oldest first.
pub fn history(state: &dyn State, keys: &Keys) -> Result<Vec<Past>> {
    Ok(state.range(&keys.at("history", ""))?.entries.iter().filter_map(|entry| serde_json::from_str(&entry.value).ok()).collect())
}

fn of<'a>(view: &'a View, name: &str) -> Result<(&'a Service, &'a Spec)> {
    let found = view.services.get(name).and_then(|service| Some((service, service.spec.as_ref()?)));
    found.ok_or_else(|| Error::new(Kind::Usage, format!("there is no service {name:?} in the cluster; `stillframe status` lists them")))
}

/// Asks for a switchover, failover, failback or frame of a service; what policy forbids is refused at once.
pub fn request(state: &dyn State, keys: &Keys, verb: &str, name: &str, to: Option<String>, shared: bool) -> Result<()> {
    let view = view(state, keys)?;
    let (service, spec) = of(&view, name)?;
    let owner = service.owner.as_ref().ok_or_else(|| Error::refused(format!("{name} has no owner just now; wait until it runs")))?;
    let to = if verb == "failback" { spec.nodes.first().map(|standby| standby.node().to_owned()) } else { to };
    if verb != "frame" {
        movable(&view, service, spec, &owner.node, to.as_deref(), shared)?;
    }
    let running = service.phase.as_ref().is_some_and(|phase| phase.state == Phase::Running);
    if verb != "failover" && !running {
        return Err(Error::refused(format!("{name} is not running; only a failover can move it")));
    }
    let request = match verb {
        "failover" => Request::Failover(to),
        "frame" => Request::Frame,
        _ => Request::Switchover(to),
    };
    let key = keys.at("request", name);
    let value = serde_json::to_string(&request).map_err(|e| Error::new(Kind::Io, format!("cannot write a request: {e}")))?;
    if state.commit(&[Guard::Absent(key.clone()), Guard::Created(keys.at("owner", name), owner.token)], &[Change::put(key, value)])?.is_none() {
        return Err(Error::refused(format!("another request for {name} is under way, or it has just moved")));
    }
    Ok(())
}

fn movable(view: &View, service: &Service, spec: &Spec, owner: &str, to: Option<&str>, shared: bool) -> Result<()> {
    let why = match to {
        Some(to) if to == owner => Some(format!("it is on {to} already")),
        Some(to) => unfit(view, shared, service, spec, to, true).map(|why| format!("{to} cannot have it: {why}")),
        None => candidates(view, shared, service, spec).iter().all(|node| node == owner).then(|| "no other node can have it".to_owned()),
    };
    why.map_or(Ok(()), |why| Err(Error::refused(format!("{}: {why}", spec.name))))
}

/// Waits until a request has been dealt with and the service runs; what became of it.
pub fn await_done(state: &dyn State, keys: &Keys, name: &str, from: &str, patience: Duration) -> Result<String> {
    let end = Instant::now() + patience;
    loop {
        let view = view(state, keys)?;
        let (service, _) = of(&view, name)?;
        let running = service.phase.as_ref().is_some_and(|phase| phase.state == Phase::Running);
        match &service.owner {
            Some(owner) if service.request.is_none() && running && owner.node != from => return Ok(owner.node.clone()),
            Some(_) if service.request.is_none() && running => return Err(Error::new(Kind::Io, format!("{name} stayed on {from}; `stillframe history` says why"))),
            _ if Instant::now() > end => return Err(Error::new(Kind::Io, format!("{name} does not run on another node after {patience:?}; `stillframe status` says where it stands"))),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Who owns a service now.
pub fn owner(state: &dyn State, keys: &Keys, name: &str) -> Result<String> {
    let view = view(state, keys)?;
    let (service, _) = of(&view, name)?;
    service.owner.as_ref().map(|owner| owner.node.clone()).ok_or_else(|| Error::refused(format!("{name} has no owner just now; wait until it runs")))
}

/// Sets or clears a mark: `pause`, `drained/NODE`.
pub fn mark(state: &dyn State, key: &str, set: bool) -> Result<()> {
    match set {
        true => state.put(key, "true"),
        false => state.delete(key),
    }
}

/// Puts the services of a configuration into the store and removes those that it lacks; gives what changed, in words.
pub fn apply(state: &dyn State, keys: &Keys, config: &Config) -> Result<Vec<String>> {
    let old = state.range(&keys.at("spec", ""))?;
    let (mut changes, mut words) = (Vec::new(), Vec::new());
    for service in &config.services {
        let (key, value) = (keys.at("spec", &service.name), serde_json::to_string(service).map_err(|e| Error::new(Kind::Io, format!("cannot write a service: {e}")))?);
        match old.entries.iter().find(|entry| entry.key == key) {
            Some(entry) if entry.value == value => continue,
            Some(_) => words.push(format!("changed {}", service.name)),
            None => words.push(format!("added {}", service.name)),
        }
        changes.push(Change::put(key, value));
    }
    for entry in &old.entries {
        let name = entry.key.rsplit('/').next().unwrap_or("");
        if !config.services.iter().any(|service| service.name == name) {
            words.push(format!("removed {name}"));
            changes.push(Change::Delete(entry.key.clone()));
        }
    }
    state.commit(&[], &changes)?;
    Ok(words)
}

/// Says that a node is off for certain: its services may be taken over at once, and it stays out until it is undrained.
pub fn fence(state: &dyn State, keys: &Keys, node: &str) -> Result<()> {
    let view = view(state, keys)?;
    state.commit(&[], &[Change::put(keys.at("fenced", node), "true"), Change::Delete(keys.at("nodes", node))])?;
    for (name, service) in &view.services {
        if let Some(owner) = service.owner.as_ref().filter(|owner| owner.node == node) {
            let key = keys.at("owner", name);
            state.commit(&[Guard::Created(key.clone(), owner.token)], &[Change::Delete(key)])?;
        }
    }
    Ok(())
}
