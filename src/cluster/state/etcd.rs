//! etcd through its JSON gateway (`/v3/*` over plain HTTP); the only file that knows etcd.
//!
//! Members are tried in turn, the one that answered last first. A request that may have been made is not made again here: the
//! caller's guards tell it on the next try what became of the first.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde_json::{json, Value};
use ureq::{Agent, Body};

use super::{Change, Entry, Event, Guard, Lease, Revision, Snapshot, State, Watch};
use crate::error::{Error, Kind, Result};

/// How long a watch lives before it is opened anew: a connection that died without a word is noticed by then.
const WATCH_LIFE: Duration = Duration::from_secs(2);

/// The members of one etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    endpoints: Vec<String>,
    agent: Agent,
    /// Index of the member that answered last.
    last: AtomicUsize,
}

impl Etcd {
    /// Members by their client URLs (`http://HOST:PORT`), the nearest first; `patience` bounds each request to each of them.
    pub fn new(endpoints: &[String], patience: Duration) -> Etcd {
        // A proxy from the environment would stand between us and a member beside us.
        let config = Agent::config_builder().proxy(None).http_status_as_error(false).timeout_global(Some(patience)).timeout_connect(Some(patience));
        Etcd { endpoints: endpoints.to_vec(), agent: config.build().into(), last: AtomicUsize::new(0) }
    }

    /// Asks one member after the other until one answers.
    fn call(&self, path: &str, body: &Value) -> Result<Value> {
        let first = self.last.load(Ordering::Relaxed);
        let mut why = String::new();
        for turn in 0..self.endpoints.len() {
            let at = (first + turn) % self.endpoints.len();
            match self.ask(&self.endpoints[at], path, body) {
                Ok(answer) => {
                    self.last.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(e) => why = format!("{}: {e}", self.endpoints[at]),
            }
        }
        // Next time another member has the first word.
        self.last.store((first + 1) % self.endpoints.len(), Ordering::Relaxed);
        Err(Error::new(Kind::Busy, format!("no member of etcd answers ({why}); check that a majority of them runs and can be reached")))
    }

    fn ask(&self, endpoint: &str, path: &str, body: &Value) -> std::result::Result<Value, String> {
        let mut answer = self.agent.post(format!("{endpoint}{path}")).send(body.to_string()).map_err(|e| e.to_string())?;
        let text = answer.body_mut().read_to_string().map_err(|e| e.to_string())?;
        let value: Value = serde_json::from_str(&text).map_err(|e| format!("{path}: not JSON: {e}"))?;
        // A lease that has ended is an answer, and not for another member to give.
        match value["code"].as_i64() {
            Some(NOT_FOUND) => Ok(value),
            _ if !answer.status().is_success() => Err(format!("{path}: {}", value["error"].as_str().unwrap_or("refused"))),
            _ => Ok(value),
        }
    }
}

/// The gateway's code for a lease that does not exist.
const NOT_FOUND: i64 = 5;

impl State for Etcd {
    fn range(&self, prefix: &str) -> Result<Snapshot> {
        let answer = self.call("/v3/kv/range", &json!({ "key": encode(prefix), "range_end": encode_end(prefix) }))?;
        let entries = answer["kvs"].as_array().map_or(&[][..], Vec::as_slice).iter().map(entry).collect::<Result<_>>()?;
        Ok(Snapshot { revision: number(&answer["header"]["revision"]), entries })
    }

    fn commit(&self, guards: &[Guard], changes: &[Change]) -> Result<Option<Revision>> {
        let body = json!({ "compare": guards.iter().map(compare).collect::<Vec<_>>(), "success": changes.iter().map(operation).collect::<Vec<_>>() });
        let answer = self.call("/v3/kv/txn", &body)?;
        if number(&answer["code"]) == NOT_FOUND {
            return Err(Error::new(Kind::TargetGone, "the lease that a key was to end with has ended itself"));
        }
        Ok((answer["succeeded"] == true).then(|| number(&answer["header"]["revision"])))
    }

    fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>> {
        let request = json!({ "create_request": { "key": encode(prefix), "range_end": encode_end(prefix), "start_revision": (after + 1).to_string() } });
        let at = self.last.load(Ordering::Relaxed);
        let endpoint = &self.endpoints[at];
        let post = self.agent.post(format!("{endpoint}/v3/watch")).config().timeout_global(Some(WATCH_LIFE)).build();
        let unwatched = |e: ureq::Error| {
            self.last.store((at + 1) % self.endpoints.len(), Ordering::Relaxed);
            Error::new(Kind::Busy, format!("cannot watch {endpoint}: {e}"))
        };
        let answer = post.send(request.to_string()).map_err(unwatched)?;
        Ok(Box::new(Stream { body: answer.into_body(), text: Vec::new() }))
    }

    fn grant(&self, ttl: Duration) -> Result<Lease> {
        let answer = self.call("/v3/lease/grant", &json!({ "TTL": ttl.as_secs().to_string() }))?;
        let (lease, granted) = (number(&answer["ID"]), number(&answer["TTL"]));
        if granted != ttl.as_secs() as i64 {
            // Whatever was granted must not linger.
            let _ = self.revoke(lease);
            let what = format!("etcd grants leases of {granted} s, not {} s: its election timeout is too long for that; set timings.ttl to {granted}s or shorten the election timeout", ttl.as_secs());
            return Err(Error::refused(what));
        }
        Ok(lease)
    }

    fn renew(&self, lease: Lease) -> Result<bool> {
        let answer = self.call("/v3/lease/keepalive", &json!({ "ID": lease.to_string() }))?;
        Ok(number(&answer["result"]["TTL"]) > 0)
    }

    fn revoke(&self, lease: Lease) -> Result<()> {
        self.call("/v3/lease/revoke", &json!({ "ID": lease.to_string() })).map(drop)
    }
}

/// A watch: one JSON object a line, until its time is over.
struct Stream {
    body: Body,
    text: Vec<u8>,
}

impl Watch for Stream {
    fn next(&mut self) -> Result<Vec<Event>> {
        let mut chunk = [0; 16384];
        loop {
            if let Some(end) = self.text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return events(&line);
            }
            match self.body.as_reader().read(&mut chunk) {
                Ok(0) => return Err(Error::new(Kind::Busy, "etcd closed the watch")),
                Ok(read) => self.text.extend_from_slice(&chunk[..read]),
                Err(e) => return Err(Error::new(Kind::Busy, format!("the watch is over: {e}"))),
            }
        }
    }
}

fn events(line: &[u8]) -> Result<Vec<Event>> {
    let answer: Value = serde_json::from_slice(line).map_err(|e| Error::corrupt(format!("etcd's watch is not JSON: {e}")))?;
    let result = &answer["result"];
    if result["canceled"] == true || answer["error"].is_object() {
        return Err(Error::new(Kind::Busy, "etcd cancelled the watch: what it was to begin with is compacted"));
    }
    let one = |event: &Value| {
        let entry = entry(&event["kv"])?;
        let gone = event["type"] == "DELETE";
        Ok(Event { revision: entry.modified, key: entry.key.clone(), entry: (!gone).then_some(entry) })
    };
    result["events"].as_array().map_or(&[][..], Vec::as_slice).iter().map(one).collect()
}

fn encode(text: &str) -> String {
    STANDARD.encode(text)
}

/// The first key that does not start with `prefix` any more; "\0" stands for all keys.
fn encode_end(prefix: &str) -> String {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        // Text has no byte 0xff.
        Some(last) => *last += 1,
        None => end.push(0),
    }
    STANDARD.encode(end)
}

fn decode(value: &Value) -> Result<String> {
    let bytes = STANDARD.decode(value.as_str().unwrap_or("")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    bytes.ok_or_else(|| Error::corrupt(format!("etcd sent {value}, which is no text in base64; does something else write under our prefix?")))
}

/// Numbers of 64 bits come as text.
fn number(value: &Value) -> i64 {
    value.as_i64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn entry(kv: &Value) -> Result<Entry> {
    Ok(Entry {
        key: decode(&kv["key"])?,
        value: decode(&kv["value"])?,
        created: number(&kv["create_revision"]),
        modified: number(&kv["mod_revision"]),
        lease: number(&kv["lease"]),
    })
}

fn compare(guard: &Guard) -> Value {
    let (key, target, field, revision) = match guard {
        Guard::Absent(key) => (key, "CREATE", "create_revision", 0),
        Guard::Created(key, revision) => (key, "CREATE", "create_revision", *revision),
        Guard::Modified(key, revision) => (key, "MOD", "mod_revision", *revision),
    };
    json!({ "key": encode(key), "result": "EQUAL", "target": target, field: revision.to_string() })
}

fn operation(change: &Change) -> Value {
    match change {
        Change::Put(key, value, lease) => json!({ "request_put": { "key": encode(key), "value": encode(value), "lease": lease.to_string() } }),
        Change::Delete(key) => json!({ "request_delete_range": { "key": encode(key) } }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        assert_eq!(encode_end("/a/"), encode("/a0"));
        assert_eq!(encode_end(""), STANDARD.encode([0]));
    }

    #[test]
    fn events_of_a_watch_are_read() {
        let line = br#"{"result":{"header":{"revision":"7"},"events":[{"type":"DELETE","kv":{"key":"YQ==","mod_revision":"7"}},{"kv":{"key":"Yg==","value":"Yw==","create_revision":"7","mod_revision":"7","version":"1","lease":"9"}}]}}"#;
        let events = events(line).unwrap();
        assert_eq!((events[0].key.as_str(), &events[0].entry, events[0].revision), ("a", &None, 7));
        assert_eq!(events[1].entry.as_ref().map(|entry| (entry.value.as_str(), entry.lease)), Some(("c", 9)));
    }

    #[test]
    fn a_compacted_watch_is_an_error() {
        assert!(super::events(br#"{"result":{"canceled":true,"compact_revision":"5"}}"#).is_err());
    }
}
