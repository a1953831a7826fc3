//! The cluster on real etcd: three servers in namespaces, faults of every kind, and a checker that reads what the service wrote.
//!
//! Needs root, etcd, ip, nsenter and a C compiler.
#![cfg(feature = "cluster")]

#[path = "cluster/mod.rs"]
#[allow(dead_code)]
mod kit;

use std::time::Duration;

use kit::field::{self, ask, eventually, now_ms, Field, TICKER};
use kit::records::Writer;
use nix::sys::signal::Signal;

#[test]
fn a_killed_service_goes_on_where_it_is() {
    let field = Field::new(TICKER);
    field.ready();
    let first = field.still();
    assert_eq!(first, 1);
    let killed = now_ms();
    field.signal(&[field.service()], Signal::SIGKILL);
    let again = field.another(1);
    println!("process killed -> it ticks again: {} ms", again - killed);
    assert_eq!(field.running("tick"), "a", "no need to move");
    eventually("an answer", || ask(Duration::from_secs(1)).ok());
    field.frames(4);
    assert_eq!(field.judge().len(), 2);
}

#[test]
fn dead_servers_are_replaced_until_none_is_left_to() {
    let mut field = Field::new(TICKER);
    field.ready();
    let first = field.still();
    assert_eq!(first, 1);
    let killed = now_ms();
    field.kill_node(0);
    let second = field.another(1);
    println!("node killed -> it ticks again: {} ms", second - killed);
    field.runs_on("tick", "b");
    eventually("an answer from the same address", || ask(Duration::from_secs(1)).ok());
    eventually("its peers are told", || field.file("members").contains("dead a").then_some(()));
    field.frames(4);
    // A server that comes back stands by again.
    field.revive(0);
    eventually("a is back", || field.view().nodes.contains_key("a").then_some(()));
    // The second one fails in turn: a is preferred to the backup.
    field.kill_node(1);
    field.another(2);
    let third = field.running("tick");
    assert_ne!(third, "b");
    field.frames(4);
    // And once more, with etcd's majority kept: now nobody is left to take over.
    field.link(1, true);
    let member = field.start_member(1, "existing");
    field.member(1, Some(member));
    let (from, to) = if third == "a" { (0, "c") } else { (2, "a") };
    field.settle();
    field.kill_node(from);
    field.another(3);
    field.runs_on("tick", to);
    eventually("the alert that nobody is left", || field.file("alerts").contains("no-further-failover tick").then_some(()));
    assert!(field.operated(&["status"]).contains("NO FURTHER FAILOVER"));
    assert_eq!(field.judge().len(), 4);
}

/// The lease of a stopped agent runs out; its warden must have ended the service by then.
#[test]
fn a_hanging_agent_loses_its_service_in_time() {
    let field = Field::new(TICKER);
    field.ready();
    let first = field.still();
    assert_eq!(first, 1);
    field.signal(&[field.agent(0)], Signal::SIGSTOP);
    let second = field.another(1);
    field.runs_on("tick", "b");
    let lives = field.judge();
    let gap = second - lives[0].to_ms;
    assert!(gap > 300, "the first instance ended only {gap} ms before the second began: the warden must not wait for the lease's end");
    field.signal(&[field.agent(0)], Signal::SIGCONT);
    eventually("a stands by again", || field.view().services["tick"].protected.filter(|protected| *protected));
    assert_eq!(field.still(), 2);
    field.judge();
}

/// All processes of a server stop at once, and go on after the takeover: what was stopped must not act any more.
#[test]
fn a_server_that_wakes_up_late_harms_nobody() {
    let field = Field::new(TICKER);
    field.ready();
    let first = field.still();
    assert_eq!(first, 1);
    let stopped = field.processes(0);
    field.signal(&stopped, Signal::SIGSTOP);
    field.another(1);
    eventually("an answer of the new one", || ask(Duration::from_secs(1)).ok());
    // The warden first, as the kernel of a machine that was paused would run its timers first.
    field.signal(&stopped[1..2], Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(300));
    field.signal(&stopped, Signal::SIGCONT);
    field.frames(4);
    assert_eq!(field.still(), 2);
    field.judge();
}

#[test]
fn a_killed_agent_takes_nothing_with_it_that_was_committed() {
    let mut field = Field::new(TICKER);
    field.ready();
    let first = field.still();
    assert_eq!(first, 1);
    field.kill_agent(0);
    field.another(1);
    field.runs_on("tick", "b");
    field.start_agent(0);
    field.frames(4);
    assert_eq!(field.judge().len(), 2);
}

fn cut_off(with_leader: bool) {
    let field = Field::new(TICKER);
    field.ready();
    field.lead(usize::from(!with_leader));
    let first = field.still();
    assert_eq!(first, 1);
    field.link(0, false);
    field.another(1);
    field.runs_on("tick", "b");
    eventually("the majority's instance answers", || ask(Duration::from_secs(1)).ok());
    field.link(0, true);
    eventually("a stands by again", || field.view().services["tick"].protected.filter(|protected| *protected));
    field.frames(4);
    assert_eq!(field.still(), 2);
    assert_eq!(field.judge().len(), 2);
}

#[test]
fn a_minority_fences_itself() {
    cut_off(false);
}

#[test]
fn a_minority_with_etcds_leader_fences_itself() {
    cut_off(true);
}

/// Without a majority nobody may run it; with one again it goes on.
#[test]
fn without_a_majority_nothing_runs() {
    let mut field = Field::new(TICKER);
    field.ready();
    let first = field.still();
    assert_eq!(first, 1);
    field.member(1, None);
    field.member(2, None);
    eventually("it is fenced", || {
        let before = field.ticks().len();
        std::thread::sleep(Duration::from_millis(500));
        (field.ticks().len() == before).then_some(())
    });
    assert_eq!(field.operate(&["status"]).status.code(), Some(4), "no quorum");
    for at in [1, 2] {
        let member = field.start_member(at, "existing");
        field.member(at, Some(member));
    }
    field.another(1);
    field.frames(4);
    field.judge();
}

/// The default timings outlast an election: nobody is fenced.
#[test]
fn the_death_of_etcds_leader_disturbs_nobody() {
    let mut field = Field::new(TICKER);
    field.ready();
    let first = field.still();
    assert_eq!(first, 1);
    let leader = field.leader();
    field.member(leader, None);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(field.still(), 1);
    let member = field.start_member(leader, "existing");
    field.member(leader, Some(member));
    assert_eq!(field.judge().len(), 1);
}

/// Two agents at once: the backup is left.
#[test]
fn two_failures_at_once_leave_the_third() {
    let mut field = Field::new(TICKER);
    field.ready();
    field.kill_agent(0);
    field.kill_agent(1);
    field.another(1);
    field.runs_on("tick", "c");
    field.frames(4);
    assert_eq!(field.judge().len(), 2);
}

/// One fault of a kind after the other, mended before the next, while a client writes records: 100 in a long run, or
/// `STILLFRAME_FAULTS`.
#[test]
fn a_soak_of_faults_loses_nothing() {
    let mut field = Field::new(TICKER);
    field.ready();
    // The usual run plays the same two faults every time.
    let long = std::env::var_os("STILLFRAME_STRESS").is_some_and(|value| value == "1");
    let asked = std::env::var("STILLFRAME_FAULTS").ok().and_then(|text| text.parse().ok());
    let (mut seed, rounds) = if long || asked.is_some() { (now_ms(), asked.unwrap_or(100)) } else { (1, 2) };
    println!("seed {seed}");
    let writer = Writer::start();
    let mut written = writer.another(0);
    for round in 0..rounds {
        // Enough to mix the kinds.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (kind, owner) = ((seed >> 33) % 5, field.running("tick"));
        let at = field::NODES.iter().position(|node| *node == owner).unwrap();
        let known = field.lives();
        println!("round {round}: fault {kind} on {owner}");
        match kind {
            0 => field.signal(&[field.service()], Signal::SIGKILL),
            1 => field.kill_agent(at),
            2 => field.signal(&[field.agent(at)], Signal::SIGSTOP),
            3 => field.link(at, false),
            _ => field.kill_node(at),
        }
        field.another(known);
        match kind {
            1 => field.start_agent(at),
            2 => field.signal(&[field.agent(at)], Signal::SIGCONT),
            3 => field.link(at, true),
            4 => field.revive(at),
            _ => {}
        }
        field.settle();
        eventually("all stand by again", || (field.view().nodes.len() == 3).then_some(()));
        written = writer.another(written);
        field.frames(4);
        field.judge();
        writer.judge(&field.commits());
    }
}

/// The storage of the frames goes away and comes back: nobody starts from nothing meanwhile.
#[test]
fn vanished_frames_are_waited_for() {
    let field = Field::new(TICKER);
    field.ready();
    let (frames, away) = (field.dir.path().join("frames"), field.dir.path().join("away"));
    std::fs::rename(&frames, &away).unwrap();
    field.signal(&[field.service()], Signal::SIGKILL);
    eventually("it is down", || field.file("alerts").contains("down tick").then_some(()));
    assert_eq!(field.lives(), 1, "a fresh start would lose everything");
    // What a writer has made there since must not be mistaken for the frames.
    let _ = std::fs::remove_dir_all(&frames);
    std::fs::rename(&away, &frames).unwrap();
    field.another(1);
    field.frames(4);
    assert_eq!(field.judge().len(), 2);
}
