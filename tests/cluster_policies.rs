//! Where a service may go and when it is framed: limits, flags, processors, moves that do not succeed.
//!
//! Needs root, etcd, ip, nsenter and a C compiler.
#![cfg(feature = "cluster")]

#[path = "cluster/mod.rs"]
#[allow(dead_code)]
mod kit;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kit::field::{self, answered, ask, ask_with, eventually, Field, TICKER};
use kit::rest::{get, rest};
use nix::sys::signal::Signal;
use serde_json::Value;
use stillframe::cluster::client::{Endpoint, Finder};
use stillframe::cluster::state::{Change, State};
use stillframe::cluster::view::State as Phase;
use stillframe::image::Chain;
use stillframe::store::{DirStore, Store};

/// The file of the service's newest committed frame.
fn newest(field: &Field) -> PathBuf {
    let frame = field.view().services["tick"].frame.clone().expect("a committed frame");
    let store = DirStore::new(field.dir.path().join("frames"));
    let found = store.list(Some(&format!("tick.{}", frame.token))).unwrap().into_iter().find(|stored| stored.seq() == frame.seq);
    store.path(&found.expect("it is in the store"))
}

/// Frames by what was written and by hand; those after the first hold only what is new.
#[test]
fn frames_are_taken_by_size_and_by_hand() {
    let field = Field::new(&TICKER.replace("every = \"200ms\"\n", "every_written = \"4MiB\"\n"));
    field.runs_on("tick", "a");
    let seq = || field.view().services["tick"].frame.as_ref().map_or(0, |frame| frame.seq);
    eventually("the first frame", || (seq() > 0).then_some(()));
    // A ticker that only counts writes a few pages.
    let first = seq();
    field.still();
    assert_eq!(seq(), first, "next to nothing was written");
    let before = ask_with(b"w", Duration::from_secs(5)).unwrap();
    eventually("a frame of what was written", || (seq() > first).then_some(()));
    assert!(Chain::open(&newest(&field)).unwrap().header().parent.is_some(), "it builds upon the first");
    let second = seq();
    assert!(get("POST /frame/tick", "10.77.0.1:7480").unwrap().starts_with("HTTP/1.1 202"));
    eventually("a frame by hand", || (seq() > second).then_some(()));
    eventually("the request is done with", || field.view().services["tick"].request.is_none().then_some(()));
    field.still();
    field.signal(&[field.service()], Signal::SIGKILL);
    field.another(1);
    assert!(eventually("an answer", || ask(Duration::from_secs(1)).ok()) > before, "what was written is remembered");
    field.judge();
}

/// A planned move whose target hangs goes back where it came from, be it before or after the target has claimed it.
#[test]
fn a_move_that_takes_too_long_is_taken_back() {
    let hooks = "mount = \"while test $STILLFRAME_NODE = b -a -e DIR/slow; do sleep 0.05; done\"\nswitchover_limit = \"1s\"\n";
    let field = Field::new(&format!("{}{hooks}", TICKER.replace("monitor", "# monitor")));
    field.ready();
    fs::write(field.dir.path().join("slow"), "").unwrap();
    let refused = field.operate(&["switchover", "tick", "--to", "b"]);
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
    field.runs_on("tick", "a");
    let history = field.operated(&["history"]);
    assert!(history.contains("switchover abandoned") && history.contains("switchover_limit"), "{history}");
    fs::remove_file(field.dir.path().join("slow")).unwrap();
    field.frames(2);
    // The target claims nothing at all.
    field.signal(&[field.agent(1)], Signal::SIGSTOP);
    assert_eq!(field.operate(&["switchover", "tick", "--to", "b"]).status.code(), Some(1));
    field.runs_on("tick", "a");
    field.still();
    field.signal(&[field.agent(1)], Signal::SIGCONT);
    field.frames(2);
    let lives = field.judge();
    assert!(lives.windows(2).all(|pair| pair[1].first == pair[0].last + 1), "nothing is lost: {lives:?}");
    // And where nothing hangs it moves.
    eventually("b stands by", || field.view().nodes.contains_key("b").then_some(()));
    assert_eq!(eventually("a move", || Some(field.operate(&["switchover", "tick", "--to", "b"])).filter(|out| out.status.success())).stdout, b"tick: a -> b\n");
}

/// Each with a place of its own; c stands by for all of them, with room for some.
const CROWD: &str = r#"
[[service]]
name = "bound"
command = ["sleep", "1000"]
nodes = ["a", "c"]
allow_failover = false
[[service]]
name = "picky"
command = ["sleep", "1000"]
nodes = ["a", "c"]
[[service]]
name = "light"
command = ["sleep", "1000"]
nodes = ["a", "c"]
[[service]]
name = "heavy"
command = ["sleep", "1000"]
nodes = ["b", "c"]
weight = 3
"#;

fn alerted(field: &Field, what: &str) {
    eventually(what, || field.file("alerts").contains(what).then_some(()));
}

/// Changes the JSON value of a key, under the lease that it has.
fn edit(field: &Field, kind: &str, name: &str, change: impl Fn(&mut Value)) {
    let key = field.keys.at(kind, name);
    let entry = field.state.get(&key).unwrap().expect("the key is there");
    let mut value: Value = serde_json::from_str(&entry.value).unwrap();
    change(&mut value);
    field.state.commit(&[], &[Change::Put(key, value.to_string(), entry.lease)]).unwrap();
}

/// N servers, one standby: it takes what it may, can and has room for, and the rest when there is room again.
#[test]
fn a_standby_takes_what_it_may_can_and_has_room_for() {
    let mut field = Field::with(CROWD, "capacity = 3");
    ["bound", "picky", "light"].iter().for_each(|service| field.runs_on(service, "a"));
    field.runs_on("heavy", "b");
    eventually("coverage is known", || field.view().services.values().all(|service| service.protected.is_some()).then_some(()));
    assert_eq!(field.view().services["bound"].protected, Some(false));
    // Its program needs something that only this processor has.
    assert!(get("POST /frame/picky", "10.77.0.1:7480").unwrap().starts_with("HTTP/1.1 202"));
    eventually("its frame", || field.view().services["picky"].frame.is_some().then_some(()));
    let need = |value: &mut Value| value["features"].as_array_mut().unwrap().push("unobtainium".into());
    edit(&field, "frame", "picky", need);
    edit(&field, "nodes", "a", need);
    let refused = field.operate(&["switchover", "picky", "--to", "c"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("its processor lacks unobtainium"), "{}", String::from_utf8_lossy(&refused.stderr));
    field.kill_agent(0);
    field.runs_on("light", "c");
    alerted(&field, "down bound");
    alerted(&field, "down picky");
    let owner = |name: &str| field.view().services[name].owner.as_ref().map(|owner| owner.node.clone());
    assert_eq!([owner("bound"), owner("picky")], [None, None]);
    edit(&field, "nodes", "c", need);
    field.runs_on("picky", "c");
    // Two of three places are taken.
    field.kill_agent(1);
    alerted(&field, "down heavy");
    assert_eq!(field.view().services["heavy"].phase.as_ref().unwrap().state, Phase::Down);
    // Its own server takes back what is bound to it; the others come when they are asked.
    field.start_agent(0);
    field.runs_on("bound", "a");
    assert_eq!(field.running("light"), "c", "failback is by hand");
    assert_eq!(field.operated(&["failback", "light"]), "light: c -> a\n");
    edit(&field, "nodes", "a", need);
    assert_eq!(field.operated(&["failback", "picky"]), "picky: c -> a\n");
    field.runs_on("heavy", "c");
}

/// Clients ask any agent where a service is, and go to its second address while it is away. What an agent knows of standbys it
/// knows without the store too.
#[test]
fn clients_and_agents_know_where_to_go() {
    let hooks = "mount = \"while test -e DIR/slow; do sleep 0.05; done\"\nsecond = \"10.77.0.254\"\n";
    let mut field = Field::new(&format!("{TICKER}{hooks}"));
    field.ready();
    let agents: Vec<SocketAddr> = (1..=3).map(|n| format!("10.77.0.{n}:7480").parse().unwrap()).collect();
    let finder = Finder::new(&agents, Duration::from_millis(500));
    let found = finder.find("tick").unwrap();
    assert_eq!(found, Endpoint { owner: Some("a".into()), address: Some(field::ADDRESS.parse().unwrap()), second: Some("10.77.0.254".into()) });
    let published: Endpoint = serde_json::from_str(&field.state.get(&field.keys.at("endpoint", "tick")).unwrap().unwrap().value).unwrap();
    assert_eq!(published, found, "the store says the same");
    assert_eq!(finder.find("nothing").unwrap_err().kind(), stillframe::Kind::NotFound);
    let number = answered(finder.connect("tick", field::PORT, field::BOUND).unwrap(), b"?").unwrap();
    // While it moves, somebody else serves at the second address.
    let second = TcpListener::bind(("10.77.0.254", field::PORT)).unwrap();
    fs::write(field.dir.path().join("slow"), "").unwrap();
    field.kill_agent(0);
    eventually("b has it", || (field.view().services["tick"].owner.as_ref()?.node == "b").then_some(()));
    let stream = finder.connect("tick", field::PORT, field::BOUND).unwrap();
    assert_eq!(stream.peer_addr().unwrap().ip().to_string(), "10.77.0.254");
    fs::remove_file(field.dir.path().join("slow")).unwrap();
    drop(second);
    let later = eventually("an answer", || finder.connect("tick", field::PORT, field::BOUND).ok().and_then(|stream| answered(stream, b"?").ok()));
    assert!(later > number.saturating_sub(100), "{later} after {number}");
    field.runs_on("tick", "b");
    // Without a majority nobody can ask the store.
    [0, 2].iter().for_each(|&at| field.member(at, None));
    eventually("the store is away", || (field.operate(&["status"]).status.code() == Some(4)).then_some(()));
    let begun = Instant::now();
    let known = rest("GET /cluster", 2, "");
    assert!(begun.elapsed() < Duration::from_secs(10), "the agent does not ask the store either");
    let standbys: Vec<_> = known["services"][0]["standbys"].as_array().unwrap().iter().map(|standby| (standby["node"].as_str().unwrap(), standby["role"].as_str().unwrap())).collect();
    assert_eq!(standbys, [("a", "failover"), ("b", "failover"), ("c", "backup")]);
}
