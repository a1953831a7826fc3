//! Telling people and programs: history, alerts, changes of membership.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::hand::{json, Hand};
use crate::cluster::now_ms;
use crate::cluster::state::Change;

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Past {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who says so.
    pub node: String,
    /// About which service; empty: about the node or the cluster.
    pub service: String,
    /// What.
    pub what: String,
    /// More of it.
    pub text: String,
}

/// How many are kept.
const KEPT: usize = 300;

/// Writes down what happened; a store that is away loses it, the journal does not.
pub fn history(hand: &Hand, service: &str, what: &str, text: &str) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    hand.say(service, &format!("{what} {text}"));
    let at_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    let past = Past { at_ms, node: hand.node.name.clone(), service: service.to_owned(), what: what.to_owned(), text: text.to_owned() };
    let key = hand.keys.at("history", &format!("{at_ms:014}.{}.{}.{}", hand.node.name, now_ms(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let mut changes = vec![Change::put(key, json(&past))];
    if let Ok(all) = hand.state.range(&hand.keys.at("history", "")) {
        let surplus = all.entries.len().saturating_sub(KEPT);
        changes.extend(all.entries.into_iter().take(surplus).map(|entry| Change::Delete(entry.key)));
    }
    let _ = hand.state.commit(&[], &changes);
}

/// Tells an operator: history, command, webhook.
pub fn alert(hand: &Arc<Hand>, kind: &str, service: &str, text: &str) {
    history(hand, service, &format!("ALERT {kind}"), text);
    hand.counts.alerts.fetch_add(1, Ordering::Relaxed);
    let env = [("STILLFRAME_ALERT", kind), ("STILLFRAME_NODE", &hand.node.name), ("STILLFRAME_SERVICE", service), ("STILLFRAME_TEXT", text)];
    if let Some(command) = &hand.config.alerts.command {
        spawn(command, &env);
    }
    if let Some(url) = hand.config.alerts.webhook.clone() {
        let body = json(&serde_json::json!({ "alert": kind, "node": hand.node.name, "service": service, "text": text }));
        let hand = hand.clone();
        std::thread::spawn(move || {
            let config = ureq::Agent::config_builder().proxy(None).timeout_global(Some(Duration::from_secs(10))).build();
            if let Err(e) = ureq::Agent::from(config).post(&url).header("Content-Type", "application/json").send(body) {
                hand.say("", &format!("the webhook {url} was not told: {e}"));
            }
        });
    }
}

/// Tells that a node came, is leaving or died.
pub fn notify(hand: &Hand, event: &str, node: &str) {
    hand.say("", &format!("node {node}: {event}"));
    if let Some(command) = &hand.config.alerts.notify {
        spawn(command, &[("STILLFRAME_EVENT", event), ("STILLFRAME_NODE", node)]);
    }
}

/// Runs a command without waiting for it here.
fn spawn(command: &str, env: &[(&str, &str)]) {
    let child = Command::new("sh").args(["-c", command]).envs(env.iter().copied()).stdin(Stdio::null()).spawn();
    if let Ok(mut child) = child {
        std::thread::spawn(move || child.wait());
    }
}
