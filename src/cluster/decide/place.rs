//! Which nodes can have a service, and in which order.

use crate::cluster::config::Service as Spec;
use crate::cluster::view::{Service, View};

/// Why `node` cannot have the service; none: it can. Whoever is `named` by an operator may have it although it failed there, or
/// although failover is not allowed.
pub fn unfit(view: &View, shared: bool, service: &Service, spec: &Spec, node: &str, named: bool) -> Option<String> {
    let Some(info) = view.nodes.get(node) else { return Some("it is not up".to_owned()) };
    let owns = service.owner.as_ref().is_some_and(|owner| owner.node == node);
    let last = service.last.as_ref();
    let moves = last.is_some_and(|last| last.node != node && last.next.as_deref() != Some(node));
    let lacks: Vec<&str> = service.frame.iter().flat_map(|frame| frame.features.difference(&info.features).map(String::as_str)).collect();
    let why = match () {
        _ if !spec.nodes.iter().any(|standby| standby.node() == node) => "it is not in its list",
        _ if info.leaving => "it is leaving",
        _ if view.drained.contains(node) => "it is drained",
        _ if view.fenced.contains(node) => "it was fenced; `stillframe undrain` takes it back",
        _ if !shared && service.frame.as_ref().is_some_and(|frame| frame.node != node) => "it does not see the frames, which are not shared",
        _ if !owns && view.load(node) + spec.weight > info.capacity => "it has no room left",
        _ if !named && moves && !(spec.allow_failover && info.allow_failover) => "failover is not allowed",
        _ if !named && last.is_some_and(|last| last.avoid.contains(node)) => "it failed there",
        _ if !lacks.is_empty() => return Some(format!("its processor lacks {}", lacks.join(", "))),
        _ => return None,
    };
    Some(why.to_owned())
}

/// All nodes that can have the service: failover servers in the order of the list, then backups.
pub fn candidates(view: &View, shared: bool, service: &Service, spec: &Spec) -> Vec<String> {
    let mut order: Vec<_> = spec.nodes.iter().filter(|standby| unfit(view, shared, service, spec, standby.node(), false).is_none()).collect();
    // Stable: within a tier the list's order stays.
    order.sort_by_key(|standby| standby.role());
    order.into_iter().map(|standby| standby.node().to_owned()).collect()
}
