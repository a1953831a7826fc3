//! Decisions as tables: a cluster, an instant, and what each node does.

use super::*;
use crate::cluster::config::Config;
use crate::cluster::view::{Frame, Node, Owner, Phase};

const FILE: &str = r#"cluster = "t"
store = "local"
path = "/x"
frames = "/f"
node = [
  { name = "a", beats = "10.0.0.1:1" },
  { name = "b", beats = "10.0.0.2:1" },
  { name = "c", beats = "10.0.0.3:1" },
]
[[service]]
name = "s"
command = ["true"]
nodes = [{ node = "c", role = "backup" }, "a", "b"]
"#;

/// Long after everything began.
const NOW: Moment = 1_000_000;

struct Scene {
    config: Config,
    view: View,
    here: Here,
}

/// Nodes a, b and c are up; a owned the service last and let go of it.
fn scene() -> Scene {
    let config = Config::parse(FILE).unwrap();
    let node = Node { capacity: 10, features: BTreeSet::from(["sse".to_owned()]), allow_failover: true, leaving: false, rest: None };
    let nodes = ["a", "b", "c"].map(|name| (name.to_owned(), node.clone())).into();
    let last = Last { node: "a".to_owned(), released: true, ..Last::default() };
    let service = Service { spec: Some(config.services[0].clone()), last: Some(last), protected: Some(true), ..Service::default() };
    let view = View { nodes, services: [("s".to_owned(), service)].into(), ..View::default() };
    let up = ["a", "b", "c"].map(|name| (name.to_owned(), 0)).into();
    let here = Here { now: NOW, shared: true, up, vacant: [("s".to_owned(), NOW)].into(), ..Here::default() };
    Scene { config, view, here }
}

impl Scene {
    fn service(&mut self) -> &mut Service {
        self.view.services.get_mut("s").unwrap()
    }

    fn spec(&mut self) -> &mut Spec {
        self.service().spec.as_mut().unwrap()
    }

    fn node(&mut self, name: &str) -> &mut Node {
        self.view.nodes.get_mut(name).unwrap()
    }

    fn last(&mut self) -> &mut Last {
        self.service().last.as_mut().unwrap()
    }

    fn owned_by(mut self, node: &str) -> Scene {
        self.service().owner = Some(Owner { node: node.to_owned(), token: 7, lease: 0 });
        self
    }

    fn runs(mut self, health: Health, failures: u32) -> Scene {
        self.here.instances.insert("s".to_owned(), Instance { token: 7, health, failures, busy: false });
        self
    }

    fn with<T>(mut self, change: impl FnOnce(&mut Scene) -> T) -> Scene {
        change(&mut self);
        self
    }

    /// What `node` does, in short.
    fn acts(&mut self, node: &str) -> Vec<String> {
        self.here.me = node.to_owned();
        let short = |action: &Action| match action {
            Action::Claim(_) => "claim".to_owned(),
            Action::Start { failures, .. } => format!("start {failures}"),
            Action::Stop { .. } => "stop".to_owned(),
            Action::GiveUp { .. } => "give up".to_owned(),
            Action::HandOver { to, frame, .. } => format!("to {to} {frame}"),
            Action::Protect { protected, .. } => format!("protected {protected}"),
            Action::Prefetch(_) => "prefetch".to_owned(),
            Action::Fence(node) => format!("fence {node}"),
            Action::Reset { .. } => "reset".to_owned(),
            Action::Down { .. } => "down".to_owned(),
            Action::Refuse { why, .. } => format!("refuse {why}"),
            Action::Frame { .. } => "frame".to_owned(),
        };
        decide(&self.view, &self.here, &self.config.timings).iter().map(short).collect()
    }

    #[track_caller]
    fn expect(mut self, node: &str, actions: &[&str]) -> Scene {
        assert_eq!(self.acts(node), actions, "node {node}");
        self
    }
}

#[test]
fn candidates_claim_in_their_order() {
    let scene = scene().expect("a", &["claim"]).expect("b", &[]).expect("c", &[]);
    let scene = scene.with(|s| s.here.now += 199).expect("b", &[]);
    let scene = scene.with(|s| s.here.now += 1).expect("b", &["claim"]).expect("c", &[]);
    scene.with(|s| s.here.now += 200).expect("c", &["claim"]);
}

#[test]
fn backups_come_last_and_the_dead_have_no_rank() {
    scene().with(|s| s.view.nodes.remove("a")).expect("b", &["claim"]).expect("c", &[]);
    scene().with(|s| s.view.nodes.retain(|name, _| name == "c")).expect("c", &["claim"]);
}

type Change = fn(&mut Scene);

#[test]
fn who_cannot_have_it_does_not_claim() {
    let cases: [(&str, Change); 8] = [
        ("leaving", |s| s.node("b").leaving = true),
        ("drained", |s| { s.view.drained.insert("b".to_owned()); }),
        ("fenced", |s| { s.view.fenced.insert("b".to_owned()); }),
        ("no room", |s| s.node("b").capacity = 0),
        ("allow-failover of the node", |s| s.node("b").allow_failover = false),
        ("allow-failover of the service", |s| s.spec().allow_failover = false),
        ("failed there", |s| { s.last().avoid.insert("b".to_owned()); }),
        ("processor", |s| s.service().frame = Some(Frame { token: 1, seq: 1, taken_ns: 0, node: "a".into(), features: ["amx".to_owned()].into(), clients: vec![] })),
    ];
    for (what, change) in cases {
        let mut scene = scene().with(|s| s.here.now += 1000).with(|s| s.view.nodes.remove("a"));
        assert_eq!(scene.acts("b"), ["claim"]);
        let mut scene = scene.with(change);
        assert!(scene.acts("b").is_empty(), "{what}");
    }
}

#[test]
fn frames_that_are_not_shared_stay_where_they_are() {
    let frame = Frame { token: 1, seq: 1, taken_ns: 0, node: "b".into(), features: BTreeSet::new(), clients: vec![] };
    let scene = scene().with(|s| s.service().frame = Some(frame)).with(|s| s.here.shared = false).with(|s| s.here.now += 1000);
    scene.expect("a", &[]).expect("b", &["claim"]).expect("c", &[]);
}

#[test]
fn a_service_may_be_bound_to_where_it_was() {
    let scene = scene().with(|s| s.spec().allow_failover = false).expect("a", &["claim"]);
    scene.with(|s| s.view.nodes.remove("a")).with(|s| s.here.now += 60_000).expect("b", &["down"]).expect("c", &[]);
}

#[test]
fn a_silent_owner_is_waited_out() {
    let heard = Heard { at: NOW - 1000, holds: BTreeSet::from([7]) };
    let dead = |s: &mut Scene| {
        s.view.nodes.remove("a");
        s.last().released = false;
        s.here.heard.insert("a".to_owned(), heard.clone());
    };
    let scene = scene().with(dead).expect("b", &[]);
    let scene = scene.with(|s| s.here.now = NOW + 1999).expect("b", &[]);
    scene.with(|s| s.here.now = NOW + 2000).expect("b", &["claim"]).expect("c", &["claim"]);
}

#[test]
fn an_owner_that_let_go_is_not_waited_for() {
    let dead = |s: &mut Scene| {
        s.view.nodes.remove("a");
        s.last().released = false;
        s.here.heard.insert("a".to_owned(), Heard { at: NOW, holds: BTreeSet::from([7]) });
    };
    scene().with(dead).with(|s| s.last().released = true).expect("b", &["claim"]);
    scene().with(dead).with(|s| s.here.heard.get_mut("a").unwrap().holds.clear()).expect("b", &["claim"]);
    scene().with(dead).with(|s| s.view.fenced.insert("a".to_owned())).expect("b", &["claim"]);
}

#[test]
fn a_planned_move_is_for_its_target_alone_until_it_takes_too_long() {
    let scene = scene().with(|s| s.last().next = Some("c".to_owned())).expect("c", &["claim"]).expect("a", &[]);
    let scene = scene.with(|s| s.here.now += 9_999).expect("a", &[]);
    scene.with(|s| s.here.now += 1).expect("a", &["claim"]);
}

#[test]
fn at_first_the_preferred_server_is_waited_for() {
    let scene = scene().with(|s| s.service().last = None).with(|s| s.spec().nodes.rotate_left(1)).expect("a", &["claim"]);
    let scene = scene.with(|s| s.view.nodes.remove("a")).expect("b", &[]);
    scene.with(|s| s.here.now += 3000).expect("b", &["claim"]).expect("c", &[]);
}

#[test]
fn an_owner_starts_restarts_and_gives_up() {
    scene().owned_by("a").expect("a", &["start 0"]);
    scene().owned_by("a").runs(Health::Starting, 0).expect("a", &[]);
    scene().owned_by("a").runs(Health::Running, 0).expect("a", &[]);
    let failed = |failures| scene().owned_by("a").runs(Health::Failed("exited".to_owned()), failures);
    failed(0).expect("a", &["start 1"]);
    failed(1).expect("a", &["start 2"]);
    failed(2).expect("a", &["give up"]);
    failed(2).with(|s| s.spec().critical = true).expect("a", &["reset"]);
    failed(2).with(|s| s.view.nodes.retain(|name, _| name == "a")).expect("a", &["protected false", "down"]);
    failed(2).with(|s| s.spec().allow_failover = false).expect("a", &["protected false", "down"]);
    failed(0).with(|s| s.view.paused = true).expect("a", &[]);
    failed(0).with(|s| s.last().back = Some("c".to_owned())).expect("a", &["to c false"]);
    failed(0).with(|s| s.last().back = Some("c".to_owned())).with(|s| s.view.drained.insert("c".to_owned())).expect("a", &["start 1"]);
    let down = |s: &mut Scene| {
        s.view.nodes.retain(|name, _| name == "a");
        s.service().protected = Some(false);
        s.service().phase = Some(Phase { state: State::Down, node: "a".to_owned(), why: String::new() });
        s.here.failed.insert("s".to_owned(), NOW);
    };
    failed(2).with(down).expect("a", &[]).with(|s| s.here.now += TRY_AGAIN).expect("a", &["start 2"]);
    failed(2).with(|s| s.service().request = Some(Request::Failover(None))).expect("a", &["to b false"]);
    failed(2).with(|s| s.here.instances.get_mut("s").unwrap().busy = true).expect("a", &[]);
}

#[test]
fn what_runs_without_being_owned_is_ended() {
    scene().runs(Health::Running, 0).expect("a", &["stop"]);
    scene().owned_by("b").runs(Health::Running, 0).expect("a", &["stop"]);
    scene().owned_by("a").runs(Health::Running, 0).with(|s| s.service().owner.as_mut().unwrap().token = 9).expect("a", &["stop"]);
    scene().owned_by("a").runs(Health::Running, 0).with(|s| s.service().spec = None).expect("a", &["give up"]);
    scene().with(|s| s.service().spec = None).expect("a", &[]);
    scene().owned_by("a").runs(Health::Running, 0).with(|s| s.here.lease = 5).expect("a", &["stop"]);
    scene().owned_by("a").with(|s| s.here.lease = 5).expect("a", &[]);
}

#[test]
fn coverage_is_written_down() {
    let alone = |s: &mut Scene| s.view.nodes.retain(|name, _| name == "a");
    let scene = scene().owned_by("a").runs(Health::Running, 0).with(alone).expect("a", &["protected false"]);
    let scene = scene.with(|s| s.service().protected = Some(false)).expect("a", &[]);
    let c = scene.config.nodes.len() as u32 * 10;
    let back = |s: &mut Scene| {
        let node = Node { capacity: c, ..s.view.nodes["a"].clone() };
        s.view.nodes.insert("c".to_owned(), node);
    };
    scene.with(back).expect("a", &["protected true"]);
}

#[test]
fn a_silent_owner_is_suspected_and_fenced() {
    let silent = |ms| move |s: &mut Scene| s.here.heard.insert("a".to_owned(), Heard { at: NOW - ms, holds: BTreeSet::from([7]) });
    scene().owned_by("a").with(silent(300)).expect("b", &[]);
    let scene = scene().owned_by("a").with(silent(301)).expect("b", &["prefetch"]).expect("c", &[]);
    let scene = scene.with(|s| s.here.fenceable.insert("a".to_owned())).expect("b", &["prefetch"]);
    let scene = scene.with(silent(601)).expect("b", &["prefetch", "fence a"]).expect("c", &[]);
    scene.with(|s| s.view.paused = true).expect("b", &[]);
}

#[test]
fn operators_are_obeyed_as_far_as_can_be() {
    let running = || scene().owned_by("a").runs(Health::Running, 0);
    let asked = |request: Request| running().with(|s| s.service().request = Some(request));
    let to = |node: &str| Some(node.to_owned());
    asked(Request::Switchover(None)).expect("a", &["to b true"]);
    asked(Request::Switchover(to("c"))).expect("a", &["to c true"]);
    asked(Request::Failover(to("c"))).expect("a", &["to c false"]);
    asked(Request::Frame).expect("a", &["frame"]);
    asked(Request::Switchover(to("a"))).expect("a", &["refuse it is on a already"]);
    asked(Request::Switchover(to("z"))).expect("a", &["refuse z cannot have it: it is not up"]);
    let avoided = |s: &mut Scene| s.last().avoid.insert("b".to_owned());
    asked(Request::Switchover(to("b"))).with(avoided).expect("a", &["to b true"]);
    asked(Request::Switchover(None)).with(|s| s.view.paused = true).expect("a", &["to b true"]);
    running().with(|s| s.view.drained.insert("a".to_owned())).expect("a", &["to b true"]);
    running().with(|s| s.node("a").leaving = true).expect("a", &["to b true"]);
    running().with(|s| s.view.drained.insert("a".to_owned())).with(|s| s.view.paused = true).expect("a", &[]);
}

#[test]
fn it_fails_back_when_home_has_settled() {
    let auto = |s: &mut Scene| {
        s.spec().failback = Failback::Auto;
        s.spec().nodes.rotate_left(1);
        s.here.up.insert("a".to_owned(), NOW - 59_999);
    };
    let scene = scene().owned_by("b").runs(Health::Running, 0).with(auto).expect("b", &[]);
    let scene = scene.with(|s| s.here.now += 1).expect("b", &["to a true"]);
    scene.with(|s| s.spec().failback = Failback::Manual).expect("b", &[]);
}

#[test]
fn one_spare_serves_many_within_its_limit() {
    let mut scene = scene().with(|s| s.view.nodes.retain(|name, _| name == "b")).with(|s| s.node("b").capacity = 2).with(|s| s.here.now += 5000);
    for name in ["t", "u"] {
        let service = scene.view.services["s"].clone();
        scene.view.services.insert(name.to_owned(), service);
        scene.here.vacant.insert(name.to_owned(), NOW);
    }
    let scene = scene.expect("b", &["claim", "claim"]);
    // What is owned counts as well.
    let own = |s: &mut Scene| s.view.services.get_mut("t").unwrap().owner = Some(Owner { node: "b".to_owned(), token: 8, lease: 0 });
    scene.with(own).expect("b", &["claim", "protected false", "start 0"]);
}

#[test]
fn that_nobody_can_run_it_is_said_once_and_by_one() {
    let none = |s: &mut Scene| {
        s.view.drained.extend(["a", "b", "c"].map(str::to_owned));
        s.here.now += 3000;
    };
    let scene = scene().with(none).expect("a", &["down"]).expect("b", &[]);
    let said = Phase { state: State::Down, node: "a".to_owned(), why: String::new() };
    scene.with(|s| s.service().phase = Some(said)).expect("a", &[]);
}
