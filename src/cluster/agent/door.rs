//! The REST interface of an agent: what it knows, its metrics, and where clients find a service.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{json, Value};

use super::groups;
use super::hand::Hand;
use crate::cluster::client::Endpoint;
use crate::cluster::operate;
use crate::error::{Context, Error, Kind, Result};

/// Listens, if the node has an address for it.
pub fn start(hand: &Arc<Hand>) -> Result<()> {
    let Some(address) = hand.node.rest else { return Ok(()) };
    let listener = TcpListener::bind(address).context(format_args!("cannot listen for REST on {address}"))?;
    let hand = hand.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let hand = hand.clone();
            std::thread::spawn(move || serve(&hand, client));
        }
    });
    Ok(())
}

/// The largest body of a request.
const MOST: u64 = 65536;

fn serve(hand: &Arc<Hand>, client: TcpStream) {
    // A client that says nothing must not hold a thread.
    let _ = client.set_read_timeout(Some(Duration::from_secs(5)));
    let mut reader = BufReader::new(&client);
    let mut lines = reader.by_ref().lines().map_while(std::result::Result::ok);
    let request = lines.next().unwrap_or_default();
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let length = head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<u64>().ok());
    let mut text = String::new();
    // A body that is cut short or no text is an empty one.
    let _ = reader.take(length.unwrap_or(0).min(MOST)).read_to_string(&mut text);
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
    let (status, kind, body) = answer(hand, method, target, &text);
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = (&client).write_all((head + &body).as_bytes());
}

const OK: &str = "200 OK";

/// What a group is asked for.
fn of_group(hand: &Arc<Hand>, method: &str, group: &str, rest: &[&str], query: &str, body: &str) -> Result<Value> {
    let option = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str| option(name).and_then(|value| value.parse::<i64>().ok());
    match (method, rest) {
        ("GET", []) => groups::members(hand, group),
        ("GET", ["events"]) => groups::events(hand, group, number("after").unwrap_or(0)),
        ("POST", ["messages"]) => groups::say(hand, group, body),
        ("POST", ["members", name]) => match number("pid") {
            Some(pid) => groups::join(hand, group, name, pid as i32, option("critical") == Some("1")),
            None => Err(Error::new(Kind::Usage, "say which process: ?pid=PID")),
        },
        ("DELETE", ["members", name]) => groups::leave(hand, group, name),
        _ => Err(Error::new(Kind::Usage, "GET groups/G, groups/G/events?after=REVISION; POST groups/G/messages, groups/G/members/NAME?pid=PID; DELETE groups/G/members/NAME")),
    }
}

fn answer(hand: &Arc<Hand>, method: &str, target: &str, body: &str) -> (&'static str, &'static str, String) {
    let view = hand.view.lock().unwrap_or_else(|e| e.into_inner()).clone();
    let path: Vec<&str> = target.split('?').next().unwrap_or("").trim_matches('/').split('/').collect();
    let json = |status, value: Value| (status, "application/json", value.to_string() + "\n");
    let failed = |e: Error| match e.kind() {
        Kind::Busy => json("503 Service Unavailable", json!({ "error": e.to_string() })),
        Kind::Usage => json("400 Bad Request", json!({ "error": e.to_string() })),
        _ => json("409 Conflict", json!({ "error": e.to_string() })),
    };
    match (method, path.as_slice()) {
        (_, ["groups", group, rest @ ..]) => {
            let query = target.split_once('?').map_or("", |(_, query)| query);
            of_group(hand, method, group, rest, query, body).map_or_else(failed, |value| json(OK, value))
        }
        ("GET", ["health"]) => {
            let joined = hand.lease.load(Ordering::Relaxed) != 0;
            json(if joined { OK } else { "503 Service Unavailable" }, json!({ "node": hand.node.name, "joined": joined }))
        }
        ("GET", ["cluster"]) => json(OK, operate::as_json(&view)),
        ("GET", ["owner", service]) => match view.services.get(*service) {
            Some(found) => {
                let spec = found.spec.as_ref();
                let (owner, address) = (found.owner.as_ref().map(|owner| owner.node.clone()), spec.and_then(|spec| spec.address).map(|address| address.ip));
                json(OK, json!(Endpoint { owner, address, second: spec.and_then(|spec| spec.second.clone()) }))
            }
            None => json("404 Not Found", json!({ "error": "no such service" })),
        },
        ("GET", ["history"]) => match operate::history(&*hand.state, &hand.keys) {
            Ok(history) => json(OK, json!(history)),
            Err(e) => failed(e),
        },
        ("GET", ["metrics"]) => (OK, "text/plain; version=0.0.4", metrics(hand)),
        ("POST", [verb @ ("switchover" | "failover" | "failback" | "frame"), service]) => {
            let to = target.split_once("?to=").map(|(_, to)| to.to_owned());
            match operate::request(&*hand.state, &hand.keys, verb, service, to, hand.config.shared) {
                Ok(()) => json("202 Accepted", json!({ "asked": verb, "service": service })),
                Err(e) => failed(e),
            }
        }
        _ => json("404 Not Found", json!({ "error": "GET health, cluster, owner/SERVICE, history, metrics; POST switchover/SERVICE, failover/SERVICE, failback/SERVICE, frame/SERVICE, with ?to=NODE" })),
    }
}

fn metrics(hand: &Hand) -> String {
    let view = hand.view.lock().unwrap_or_else(|e| e.into_inner()).clone();
    let counts = &hand.counts;
    let mut text = String::new();
    let mut add = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
        text += &format!("# HELP stillframe_{name} {help}\n# TYPE stillframe_{name} {kind}\n");
        samples.iter().for_each(|(labels, value)| text += &format!("stillframe_{name}{labels} {value}\n"));
    };
    let plain = |value: u64| vec![(String::new(), value)];
    add("joined", "gauge", "Whether this agent holds a lease.", plain(u64::from(hand.lease.load(Ordering::Relaxed) != 0)));
    add("nodes", "gauge", "Nodes that are up.", plain(view.nodes.len() as u64));
    add("frames_total", "counter", "Frames committed by this agent.", plain(counts.frames.load(Ordering::Relaxed)));
    add("frame_pause_microseconds", "gauge", "How long the last frame stopped its service.", plain(counts.pause_us.load(Ordering::Relaxed)));
    add("takeovers_total", "counter", "Services that this agent took over from another node.", plain(counts.takeovers.load(Ordering::Relaxed)));
    add("alerts_total", "counter", "Alerts raised by this agent.", plain(counts.alerts.load(Ordering::Relaxed)));
    let by_service = |value: &dyn Fn(&crate::cluster::view::Service) -> u64| view.services.iter().map(|(name, service)| (format!("{{service=\"{name}\"}}"), value(service))).collect();
    add("service_protected", "gauge", "Whether another node can take the service over.", by_service(&|service| u64::from(service.protected == Some(true))));
    add("service_here", "gauge", "Whether this node owns the service.", by_service(&|service| u64::from(service.owner.as_ref().is_some_and(|owner| owner.node == hand.node.name))));
    add("service_frame_seconds", "gauge", "When the newest committed frame was taken, in seconds since 1970.", by_service(&|service| service.frame.as_ref().map_or(0, |frame| frame.taken_ns / 1_000_000_000)));
    text
}
