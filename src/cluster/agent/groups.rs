//! Process groups: instances register and are watched; messages and changes of membership come to all in one total order, that of
//! the store's revisions.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::hand::{json as text_of, Hand};
use super::tell;
use crate::cluster::now_ms;
use crate::cluster::state::{Change, Guard, Revision};
use crate::error::{Context, Error, Kind, Result};
use crate::proc::Pid;
use crate::sys::pidfd;

/// How many messages of a group are kept for those who come late.
const KEPT: usize = 200;
/// How long a request for events waits for the first one.
const PATIENCE: Duration = Duration::from_secs(10);

/// A registered instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Member {
    node: String,
    pid: Pid,
    critical: bool,
    /// It ended without a word; nobody knows in which state.
    exited: bool,
}

/// Where a group's keys are: `m/` for members, `t/` for what was said.
fn prefix(hand: &Hand, group: &str) -> String {
    hand.keys.at("group", group) + "/"
}

/// Registers a process of this machine; it is watched until it ends or is unregistered.
pub fn join(hand: &Arc<Hand>, group: &str, name: &str, pid: Pid, critical: bool) -> Result<Value> {
    let handle = pidfd::open(pid).context(format_args!("cannot watch process {pid}"))?;
    let key = prefix(hand, group) + "m/" + name;
    let lease = hand.lease.load(Ordering::Relaxed);
    let member = Member { node: hand.node.name.clone(), pid, critical, exited: false };
    let made = match lease {
        0 => return Err(Error::new(Kind::Busy, "this agent has no lease just now")),
        lease => hand.state.commit(&[Guard::Absent(key.clone())], &[Change::Put(key.clone(), text_of(&member), lease)])?,
    };
    let Some(revision) = made else { return Err(Error::refused(format!("group {group} has a member {name}"))) };
    let (hand, name, group) = (hand.clone(), name.to_owned(), group.to_owned());
    std::thread::spawn(move || {
        // Readable when the process has ended.
        while poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
        bury(&hand, &group, &name, &key, revision, &member);
    });
    Ok(json!({ "revision": revision }))
}

/// A member's process has ended. Unless it was unregistered before, that is a failure: told to all, and then unregistered.
fn bury(hand: &Arc<Hand>, group: &str, name: &str, key: &str, born: Revision, member: &Member) {
    let held = [Guard::Created(key.to_owned(), born)];
    let exited = Member { exited: true, ..member.clone() };
    let told = hand.state.commit(&held, &[Change::Put(key.to_owned(), text_of(&exited), hand.lease.load(Ordering::Relaxed))]);
    if !matches!(told, Ok(Some(_))) {
        return;
    }
    tell::alert(hand, "member-exited", "", &format!("{name} of group {group} (process {}) exited in an unknown state", member.pid));
    // It goes with the lease at the latest.
    let _ = hand.state.commit(&held, &[Change::Delete(key.to_owned())]);
    if let Some(reset) = hand.node.reset.as_ref().filter(|_| member.critical) {
        tell::alert(hand, "reset", "", &format!("{name} of group {group} is critical: this node is reset"));
        let _ = std::process::Command::new("sh").args(["-c", reset]).stdin(std::process::Stdio::null()).status();
    }
}

/// Unregisters an instance; its end is no failure from now on.
pub fn leave(hand: &Hand, group: &str, name: &str) -> Result<Value> {
    hand.state.delete(&(prefix(hand, group) + "m/" + name)).map(|()| json!({}))
}

/// Says something to all; gives its place in the order.
pub fn say(hand: &Hand, group: &str, text: &str) -> Result<Value> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let all = prefix(hand, group) + "t/";
    let key = format!("{all}{}.{}.{}", now_ms(), hand.node.name, COUNT.fetch_add(1, Ordering::Relaxed));
    let mut old = hand.state.range(&all)?.entries;
    old.sort_by_key(|entry| entry.created);
    let surplus = old.len().saturating_sub(KEPT);
    let mut changes = vec![Change::put(key, text)];
    changes.extend(old.into_iter().take(surplus).map(|entry| Change::Delete(entry.key)));
    let revision = hand.state.commit(&[], &changes)?;
    Ok(json!({ "revision": revision }))
}

/// The members now, and the revision that events go on from.
pub fn members(hand: &Hand, group: &str) -> Result<Value> {
    let all = prefix(hand, group) + "m/";
    let snapshot = hand.state.range(&all)?;
    let member = |value: &str| serde_json::from_str::<Value>(value).unwrap_or_default();
    let members: serde_json::Map<String, Value> = snapshot.entries.iter().map(|entry| (entry.key[all.len()..].to_owned(), member(&entry.value))).collect();
    Ok(json!({ "revision": snapshot.revision, "members": members }))
}

/// What happened after a revision, in the one order; waits a while for the first.
pub fn events(hand: &Hand, group: &str, after: Revision) -> Result<Value> {
    let (all, end) = (prefix(hand, group), Instant::now() + PATIENCE);
    while Instant::now() < end {
        let mut watch = hand.state.watch(&all, after)?;
        // A watch ends now and then; then it begins anew at the same place.
        while let Ok(events) = watch.next() {
            let found: Vec<Value> = events.iter().filter_map(|event| told(&all, event)).collect();
            if !found.is_empty() {
                return Ok(json!({ "revision": events.last().map(|event| event.revision), "events": found }));
            }
            if Instant::now() > end {
                break;
            }
        }
    }
    Ok(json!({ "revision": after, "events": [] }))
}

fn told(prefix: &str, event: &crate::cluster::state::Event) -> Option<Value> {
    let (kind, name) = event.key.strip_prefix(prefix)?.split_once('/')?;
    let value = event.entry.as_ref().map(|entry| entry.value.as_str());
    let event_of = |what: &str| json!({ "revision": event.revision, "event": what, "member": name });
    match (kind, value) {
        ("t", Some(text)) => Some(json!({ "revision": event.revision, "event": "message", "text": text })),
        ("m", None) => Some(event_of("left")),
        ("m", Some(member)) => Some(event_of(if serde_json::from_str::<Member>(member).is_ok_and(|member| member.exited) { "exited" } else { "joined" })),
        _ => None,
    }
}
