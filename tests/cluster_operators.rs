//! The cluster as operators and clients see it: commands, moves, answers during a takeover, alerts.
//!
//! Needs root, etcd, ip, nsenter and a C compiler.
#![cfg(feature = "cluster")]

#[path = "cluster/mod.rs"]
#[allow(dead_code)]
mod kit;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use kit::field::{self, ask, eventually, Field, ADDRESS, TICKER};
use kit::rest::{get, rest};
use nix::sys::signal::Signal;
use stillframe::cluster::view::State;

#[test]
fn operators_move_pause_and_drain() {
    let field = Field::new(TICKER);
    field.ready();
    assert_eq!(field.operated(&["switchover", "tick", "--to", "b"]), "tick: a -> b\n");
    field.still();
    let lives = field.judge();
    // The kernel may give the second namespace the number of the first: then both look like one life, without a gap.
    let known = lives.len();
    assert!(lives.windows(2).all(|pair| pair[1].first == pair[0].last + 1), "a planned move loses nothing: {lives:?}");
    let silent = field.ticks().windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms).max();
    println!("planned move: silent for {} ms at most", silent.unwrap());
    let status: serde_json::Value = serde_json::from_str(&field.operated(&["status", "--json"])).unwrap();
    assert_eq!((&status["services"][0]["owner"], &status["services"][0]["phase"]), (&"b".into(), &"running".into()));
    // Refusals, and wrong usage.
    let refused = field.operate(&["switchover", "tick", "--to", "b"]);
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    assert_eq!(field.operate(&["switchover", "nothing"]).status.code(), Some(2));
    assert_eq!(field.operate(&["drain", "z"]).status.code(), Some(2));
    // Paused, nobody brings it back.
    field.operated(&["pause"]);
    field.signal(&[field.service()], Signal::SIGKILL);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(field.lives(), known);
    assert!(field.operated(&["status"]).contains("PAUSED"));
    field.operated(&["resume"]);
    field.another(known);
    field.runs_on("tick", "b");
    field.frames(3);
    // Drained, b gives it away and gets nothing.
    field.operated(&["drain", "b"]);
    field.runs_on("tick", "a");
    assert_eq!(field.operate(&["switchover", "tick", "--to", "b"]).status.code(), Some(3));
    field.operated(&["undrain", "b"]);
    field.frames(3);
    assert_eq!(field.operated(&["failover", "tick", "--to", "c"]), "tick: a -> c\n");
    field.frames(3);
    assert_eq!(field.operated(&["failback", "tick"]), "tick: c -> a\n");
    field.judge();
    let history = field.operated(&["history"]);
    for what in ["started", "handed over", "moved", "resumed", "claimed"] {
        assert!(history.contains(what), "{what}: {history}");
    }
}

#[test]
fn rest_and_metrics_tell_and_take_orders() {
    let field = Field::new(TICKER);
    field.ready();
    let rest = "10.77.0.2:7480";
    assert!(get("GET /health", rest).unwrap().contains(r#""joined":true"#));
    let owner = get("GET /owner/tick", rest).unwrap();
    assert!(owner.contains(r#""owner":"a""#) && owner.contains(ADDRESS), "{owner}");
    let metrics = get("GET /metrics", "10.77.0.1:7480").unwrap();
    assert!(metrics.contains("stillframe_service_here{service=\"tick\"} 1\n") && metrics.contains("stillframe_nodes 3\n"), "{metrics}");
    assert!(get("GET /nothing", rest).unwrap().starts_with("HTTP/1.1 404"));
    assert!(get("POST /switchover/tick?to=a", rest).unwrap().starts_with("HTTP/1.1 409"));
    let before = field.view().services["tick"].frame.clone().unwrap();
    assert!(get("POST /frame/tick", rest).unwrap().starts_with("HTTP/1.1 202"));
    eventually("a frame by hand", || field.view().services["tick"].frame.clone().filter(|frame| frame.seq > before.seq));
    assert!(get("POST /switchover/tick?to=c", rest).unwrap().starts_with("HTTP/1.1 202"));
    field.runs_on("tick", "c");
    assert!(get("GET /history", rest).unwrap().contains("handed over"));
    field.judge();
}

#[test]
fn configurations_are_applied_at_run_time() {
    let field = Field::new(TICKER);
    field.ready();
    let plus = TICKER.to_owned() + "[[service]]\nname = \"sleeper\"\ncommand = [\"sleep\", \"1000\"]\nnodes = [\"c\"]\n";
    let file = field.dir.path().join("plus.toml");
    let path = file.to_str().unwrap();
    fs::write(&file, field.text(&plus.replace("nodes = [\"c\"]", "nodes = [\"q\"]"), "")).unwrap();
    let wrong = field.operate(&["apply", path]);
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2));
    let line = fs::read_to_string(&file).unwrap().lines().position(|line| line.contains("\"q\"")).unwrap() + 1;
    assert!(text.contains(&format!("plus.toml:{line}: nodes: there is no [[node]] \"q\"")), "{text}");
    fs::write(&file, field.text(&plus, "")).unwrap();
    assert_eq!(field.operated(&["apply", path]), "added sleeper\n");
    field.runs_on("sleeper", "c");
    assert_eq!(field.operated(&["apply", path]), "nothing changed\n");
    assert_eq!(field.operated(&["apply", field.config().to_str().unwrap()]), "removed sleeper\n");
    eventually("it ends", || field.view().services.get("sleeper").is_none_or(|service| service.owner.is_none()).then_some(()));
    assert_eq!(field.judge().len(), 1, "the other one is left alone");
}

/// A mount command that waits for a file to go makes the takeover as long as a test looks at it.
fn slow(more: &str) -> String {
    TICKER.replace("every = \"200ms\"\n", &format!("every = \"200ms\"\nmount = \"while test -e DIR/slow; do sleep 0.05; done\"\nunmount = \"echo unmounted >> DIR/unmounted\"\nhttp = [8080]\nsecond = \"10.77.0.200\"\n{more}\n"))
}

#[test]
fn a_takeover_answers_with_errors_at_once() {
    let mut field = Field::new(&slow(""));
    field.ready();
    // A client that is connected and says nothing.
    let mut idle = TcpStream::connect((ADDRESS, field::PORT)).unwrap();
    idle.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    field.frames(2);
    fs::write(field.dir.path().join("slow"), "").unwrap();
    field.kill_node(0);
    let claimed = eventually("somebody claims it", || (field.view().services["tick"].owner.as_ref()?.node == "b").then(Instant::now));
    let refused = eventually("a refusal", || ask(Duration::from_millis(500)).err().filter(|e| e.kind() == ErrorKind::ConnectionRefused).map(|_| Instant::now()));
    println!("claimed -> a new client is refused: {} ms", (refused - claimed).as_millis());
    let page = eventually("a page", || get("GET /", &format!("{ADDRESS}:8080")).ok());
    assert!(page.starts_with("HTTP/1.1 503") && page.contains("10.77.0.200"), "{page}");
    let woken = idle.read(&mut [0; 8]).unwrap_err();
    assert_eq!(woken.kind(), ErrorKind::ConnectionReset, "an idle client is woken");
    println!("claimed -> an idle client is reset: at most {} ms", claimed.elapsed().as_millis());
    assert_eq!(field.view().services["tick"].phase.as_ref().unwrap().state, State::Restoring, "all that before it serves again");
    fs::remove_file(field.dir.path().join("slow")).unwrap();
    field.another(1);
    eventually("an answer", || ask(Duration::from_secs(1)).ok());
    field.judge();
}

#[test]
fn a_held_takeover_is_silent() {
    let field = Field::new(&slow("meanwhile = \"hold\""));
    field.ready();
    fs::write(field.dir.path().join("slow"), "").unwrap();
    let moving = std::thread::scope(|scope| {
        let moved = scope.spawn(|| field.operated(&["failover", "tick", "--to", "b"]));
        eventually("b has it", || (field.view().services["tick"].owner.as_ref()?.node == "b").then_some(()));
        // The first instance is gone: its connections end. From here on there is silence, then an answer.
        let begun = Instant::now();
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(2));
            fs::remove_file(field.dir.path().join("slow")).unwrap();
        });
        let answer = ask(Duration::from_secs(20));
        assert!(answer.is_ok(), "{answer:?}");
        println!("held for {} ms", begun.elapsed().as_millis());
        moved.join().unwrap()
    });
    assert_eq!(moving, "tick: a -> b\n");
    assert!(field.file("unmounted").contains("unmounted"), "storage is let go before it moves");
    field.judge();
}

#[test]
fn a_service_that_fails_everywhere_is_down_and_says_so() {
    let services = r#"
[[service]]
name = "bad"
command = ["sh", "-c", "sleep 0.2; exit 3"]
nodes = ["a", "b"]
restarts = 1
[[service]]
name = "grave"
command = ["sh", "-c", "sleep 0.2; exit 3"]
nodes = ["c"]
restarts = 0
critical = true
"#;
    let field = Field::with(services, "reset = \"touch DIR/reset\"");
    eventually("bad is given up on a", || field.file("alerts").contains("failed bad").then_some(()));
    eventually("it is down", || field.file("alerts").contains("down bad").then_some(()));
    assert_eq!(field.view().services["bad"].phase.as_ref().unwrap().state, State::Down);
    eventually("the server of the critical one is reset", || field.dir.path().join("reset").exists().then_some(()));
    assert!(field.file("alerts").contains("reset grave"));
}

/// A hanging service is told by its probe; a daemon is found by its pid file.
#[test]
fn probes_and_pid_files() {
    let services = TICKER.replace("failures = 5", "failures = 3").replace("timeout = \"2s\"", "timeout = \"300ms\"")
        + "[[service]]\nname = \"daemon\"\ncommand = [\"sh\", \"-c\", \"(trap '' HUP; exec sleep 1000) & echo $! > DIR/pid\"]\npid_file = \"DIR/pid\"\nnodes = [\"c\"]\nmonitor = [{ script = \"test -e DIR/pid || exit 7\", every = \"100ms\" }]\nrestarts = 5\n";
    let services = services.replace("{ tcp = 7000", "{ script = \"test ! -e DIR/hang || sleep 5\"");
    let field = Field::new(&services);
    field.ready();
    field.runs_on("daemon", "c");
    fs::write(field.dir.path().join("hang"), "").unwrap();
    eventually("it is found unwell", || field.file("agent-a").contains("unwell").then_some(()));
    fs::remove_file(field.dir.path().join("hang")).unwrap();
    field.another(1);
    fs::remove_file(field.dir.path().join("pid")).unwrap();
    eventually("the daemon is started again", || field.file("pid").lines().next().map(drop));
    field.runs_on("daemon", "c");
    field.judge();
}

#[test]
fn a_fence_command_shortens_the_wait() {
    let field = Field::with(TICKER, "fence = \"kill -9 $(cat DIR/pids-$STILLFRAME_ABOUT) && touch DIR/fenced-$STILLFRAME_ABOUT\"");
    field.ready();
    let pids = field.processes(0);
    fs::write(field.dir.path().join("pids-a"), pids.iter().map(|pid| format!("{pid} ")).collect::<String>()).unwrap();
    field.signal(&pids, Signal::SIGSTOP);
    field.another(1);
    field.runs_on("tick", "b");
    assert!(field.dir.path().join("fenced-a").exists());
    assert!(field.view().fenced.contains("a") && field.file("alerts").contains("fenced"));
    field.judge();
    field.operated(&["undrain", "a"]);
    assert!(!field.view().fenced.contains("a"));
}

/// The README's walk-through, on the store for one machine.
#[test]
fn the_walk_through_walks() {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cluster/run");
    let out = std::process::Command::new(script).arg(env!("CARGO_BIN_EXE_stillframe")).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    for what in ["the second server went on", "count: b -> c", "handed over"] {
        assert!(text.contains(what), "{what}: {text}");
    }
}

#[test]
fn the_example_configuration_is_right() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cluster/cluster.toml");
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_stillframe")).args(["apply", "--check"]).arg(file).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// All events of a group as an agent tells them, until there are so many.
fn heard(node: usize, count: usize) -> Vec<serde_json::Value> {
    let (mut after, mut all) = (0, Vec::new());
    eventually("events", || {
        let answer = rest(&format!("GET /groups/g/events?after={after}"), node, "");
        after = answer["revision"].as_i64().unwrap();
        all.extend(answer["events"].as_array().unwrap().iter().cloned());
        (all.len() >= count).then_some(())
    });
    all
}

#[test]
fn groups_hear_everything_in_one_order() {
    let mut field = Field::new("");
    eventually("all have joined", || (field.view().nodes.len() == 3).then_some(()));
    let mut sleepers: Vec<_> = (0..3).map(|_| std::process::Command::new("sleep").arg("1000").spawn().unwrap()).collect();
    for (at, sleeper) in sleepers.iter().enumerate() {
        let answer = rest(&format!("POST /groups/g/members/m{at}?pid={}", sleeper.id()), at + 1, "");
        assert!(answer["revision"].is_number(), "{answer}");
    }
    std::thread::scope(|scope| {
        for node in [1, 2, 3] {
            scope.spawn(move || (0..10).for_each(|n| drop(rest("POST /groups/g/messages", node, &format!("{n} of {node}")))));
        }
    });
    // One ends without a word, one says goodbye before, and the agent of the third dies.
    sleepers[0].kill().unwrap();
    sleepers[0].wait().unwrap();
    rest("DELETE /groups/g/members/m1", 2, "");
    eventually("m0 is buried", || rest("GET /groups/g", 2, "")["members"].get("m0").is_none().then_some(()));
    field.kill_agent(2);
    eventually("m2 went with its agent", || rest("GET /groups/g", 2, "")["members"].as_object().unwrap().is_empty().then_some(()));
    sleepers.iter_mut().skip(1).for_each(|sleeper| { sleeper.kill().unwrap(); sleeper.wait().unwrap(); });
    // Three joined, thirty messages, one exited, three left.
    let (first, second) = (heard(1, 37), heard(2, 37));
    assert_eq!(first, second, "one order for all");
    let count = |what: &str| first.iter().filter(|event| event["event"] == what).count();
    assert_eq!([count("joined"), count("message"), count("exited"), count("left")], [3, 30, 1, 3]);
    assert!(first.windows(2).all(|pair| pair[0]["revision"].as_i64() <= pair[1]["revision"].as_i64()));
    assert!(field.file("alerts").contains("member-exited"));
}

/// Two services that stand by for each other; the one whose server left comes home when that is back. Alerts reach a webhook, and
/// a watchdog is fed.
#[test]
fn two_servers_stand_by_for_each_other() {
    let services = r#"
[[service]]
name = "one"
command = ["sleep", "1000"]
nodes = ["a", "b"]
every = "300ms"
failback = "auto"
failback_delay = "1s"
[[service]]
name = "two"
command = ["sleep", "1000"]
nodes = ["b", "a"]
every = "300ms"
"#;
    let dog = tempfile::NamedTempFile::new().unwrap();
    let mut field = Field::with(services, &format!("watchdog = \"{}\"", dog.path().display()));
    let hook = std::net::TcpListener::bind("10.77.0.254:9000").unwrap();
    let posts = std::thread::spawn(move || {
        let (mut client, _) = hook.accept().unwrap();
        let mut text = [0; 2048];
        let mut length = client.read(&mut text).unwrap();
        while !text[..length].ends_with(b"}") {
            length += client.read(&mut text[length..]).unwrap();
        }
        client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    });
    field.runs_on("one", "a");
    field.runs_on("two", "b");
    field.frames(4);
    // Asked to leave, an agent gives its services away first.
    field.signal(&[field.agent(0)], Signal::SIGTERM);
    field.runs_on("one", "b");
    assert_eq!(field.running("two"), "b");
    eventually("it is said that a leaves", || field.file("members").contains("leaving a").then_some(()));
    eventually("a is gone", || (!field.view().nodes.contains_key("a")).then_some(()));
    assert!(!field.file("members").contains("dead a"), "who said goodbye is not dead");
    let post = posts.join().unwrap();
    assert!(post.starts_with("POST /alerts") && post.contains("no-further-failover"), "{post}");
    assert!(fs::metadata(dog.path()).unwrap().len() > 3, "the watchdog is fed");
    field.kill_agent(0);
    field.start_agent(0);
    field.runs_on("one", "a");
    assert_eq!(field.running("two"), "b");
}
