//! What every store of cluster state must do: the same checks on etcd and on the local store.
#![cfg(feature = "cluster")]

#[path = "cluster/etcd.rs"]
mod etcd;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use stillframe::cluster::state::etcd::Etcd;
use stillframe::cluster::state::local::Local;
use stillframe::cluster::state::{Change, Event, Guard, State, Watch};
use stillframe::Kind;

const BOUND: Duration = Duration::from_secs(30);

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Watches until `count` events have come, opening the watch anew as a user would.
fn gather(state: &dyn State, prefix: &str, after: i64, count: usize) -> Vec<Event> {
    let (mut found, mut after, end): (Vec<Event>, _, _) = (Vec::new(), after, Instant::now() + BOUND);
    while found.len() < count {
        let mut watch = state.watch(prefix, after).unwrap();
        while found.len() < count {
            assert!(Instant::now() < end, "only {found:?}");
            match watch.next() {
                Ok(events) => found.extend(events),
                Err(_) => break,
            }
            after = found.last().map_or(after, |event| event.revision);
        }
    }
    found
}

fn keys_and_revisions(state: &dyn State) {
    state.put("k/a", "1").unwrap();
    state.put("k/b", "ü\n\"").unwrap();
    state.put("l", "other").unwrap();
    state.put("k/a", "2").unwrap();
    let all = state.range("k/").unwrap();
    assert_eq!(all.entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect::<Vec<_>>(), [("k/a", "2"), ("k/b", "ü\n\"")]);
    let a = &all.entries[0];
    assert!(a.created < a.modified && a.modified <= all.revision && a.lease == 0, "{a:?}");
    assert_eq!(state.get("k/").unwrap(), None, "a prefix is no key");
    state.delete("k/a").unwrap();
    state.delete("k/a").unwrap();
    assert_eq!(state.get("k/a").unwrap(), None);
    state.put("k/a", "3").unwrap();
    assert!(state.get("k/a").unwrap().unwrap().created > a.modified, "a new key has a new birth");
}

fn transactions(state: &dyn State) {
    let put = |value: &str| [Change::put("t/owner", value), Change::put("t/note", value)];
    let absent = [Guard::Absent("t/owner".into())];
    let made = state.commit(&absent, &put("a")).unwrap().expect("nobody was there");
    assert_eq!(state.commit(&absent, &put("b")).unwrap(), None, "one only");
    let owner = state.get("t/owner").unwrap().unwrap();
    assert_eq!((owner.value.as_str(), owner.created, owner.modified), ("a", made, made));
    assert_eq!(state.get("t/note").unwrap().unwrap().modified, made, "all at once");
    let held = [Guard::Created("t/owner".into(), made)];
    assert!(state.commit(&held, &[Change::put("t/frame", "1")]).unwrap().is_some());
    state.delete("t/owner").unwrap();
    state.commit(&absent, &put("c")).unwrap().unwrap();
    assert_eq!(state.commit(&held, &[Change::put("t/frame", "2")]).unwrap(), None, "the token is stale");
    assert_eq!(state.get("t/frame").unwrap().unwrap().value, "1");
    let note = state.get("t/note").unwrap().unwrap().modified;
    assert!(state.commit(&[Guard::Modified("t/note".into(), note)], &put("d")).unwrap().is_some());
    assert_eq!(state.commit(&[Guard::Modified("t/note".into(), note)], &put("e")).unwrap(), None);
}

fn watches(state: &dyn State) {
    let before = state.range("w/").unwrap().revision;
    state.put("w/a", "1").unwrap();
    state.put("x", "unseen").unwrap();
    state.commit(&[], &[Change::put("w/b", "2"), Change::Delete("w/a".into())]).unwrap();
    let events = gather(state, "w/", before, 3);
    let seen: Vec<(&str, Option<&str>)> = events.iter().map(|event| (event.key.as_str(), event.entry.as_ref().map(|entry| entry.value.as_str()))).collect();
    assert_eq!(seen[0], ("w/a", Some("1")));
    assert!(seen[1..].contains(&("w/b", Some("2"))) && seen[1..].contains(&("w/a", None)), "{seen:?}");
    assert!(events[0].revision < events[1].revision && events[1].revision == events[2].revision);
    assert_eq!(gather(state, "w/", events[0].revision, 2), events[1..], "from a revision on");
}

/// A change made while a watch waits reaches it soon.
fn a_waiting_watch(state: &(dyn State + 'static)) {
    let mut watch: Box<dyn Watch> = state.watch("v/", state.range("v/").unwrap().revision).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            let begun = Instant::now();
            state.put("v/a", "1").unwrap();
            begun
        });
        let events = std::iter::repeat_with(|| watch.next().unwrap()).find(|events| !events.is_empty()).unwrap();
        assert_eq!(events.len(), 1);
        assert!(writer.join().unwrap().elapsed() < Duration::from_secs(2), "a watch is no poll");
    });
}

fn leases(state: &dyn State) {
    let lease = state.grant(Duration::from_secs(2)).unwrap();
    let put = |key: &str, lease| state.commit(&[], &[Change::Put(key.into(), "here".into(), lease)]);
    put("n/a", lease).unwrap();
    assert_eq!(state.get("n/a").unwrap().unwrap().lease, lease);
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        assert!(state.renew(lease).unwrap());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(state.get("n/a").unwrap().is_some(), "renewed, it stays");
    let revision = state.range("n/").unwrap().revision;
    let event = gather(state, "n/", revision, 1).remove(0);
    assert_eq!((event.key.as_str(), event.entry), ("n/a", None), "not renewed, it goes");
    assert!(!state.renew(lease).unwrap());
    assert!(put("n/a", lease).is_err(), "no key on a lease that has ended");
    let short = state.grant(Duration::from_secs(60)).unwrap();
    put("n/b", short).unwrap();
    state.revoke(short).unwrap();
    state.revoke(short).unwrap();
    assert_eq!(state.get("n/b").unwrap(), None);
}

fn conforms(state: &'static dyn State) {
    keys_and_revisions(state);
    transactions(state);
    watches(state);
    a_waiting_watch(state);
    leases(state);
}

#[test]
fn etcd_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let place = etcd::Place { name: "one", dir: dir.path(), netns: None, ip: "127.0.0.1", client: free_port(), peer: free_port() };
    let _member = place.start(&format!("one={}", place.peer_url()), "new", 50, 500);
    // The first endpoint never answers: the second must do.
    let dead = format!("http://127.0.0.1:{}", free_port());
    let state: &'static Etcd = Box::leak(Box::new(Etcd::new(&[dead, place.client_url()], Duration::from_secs(5))));
    etcd::wait_ready(state);
    conforms(state);
}

#[test]
fn the_local_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(Box::leak(Box::new(Local::open(dir.path()).unwrap())));
}

#[test]
fn the_local_store_refuses_a_second_host_and_forgets_leases_of_another_boot() {
    let dir = tempfile::tempdir().unwrap();
    let first = Local::open_as(dir.path(), "host-1", "boot-1").unwrap();
    let lease = first.grant(Duration::from_secs(3600)).unwrap();
    first.commit(&[], &[Change::Put("a".into(), "leased".into(), lease), Change::put("b", "stays")]).unwrap();
    let refused = Local::open_as(dir.path(), "host-2", "boot-1").unwrap_err();
    assert_eq!(refused.kind(), Kind::Refused);
    assert!(refused.to_string().contains("another host") && refused.to_string().contains("etcd"), "{refused}");
    let later = Local::open_as(dir.path(), "host-1", "boot-2").unwrap();
    assert_eq!(later.range("").unwrap().entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn etcd_that_is_away_is_busy() {
    let state = Etcd::new(&[format!("http://127.0.0.1:{}", free_port())], Duration::from_millis(300));
    let e = state.range("").unwrap_err();
    assert_eq!(e.kind(), Kind::Busy);
    assert!(e.to_string().contains("majority"), "{e}");
}
