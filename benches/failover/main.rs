//! How long clients go without a service that fails or moves: `cargo bench --bench failover -- [RUNS] [CASE]...`
//!
//! The service is redis with 256 MiB (`STILLFRAME_BENCH_MIB`) on three servers in network namespaces, with real etcd. Times are
//! medians in milliseconds: from the fault to its detection, to the claim of the next server, to the announcement of the address
//! there, to the first answer. Cases: process, node, node-leader (whose server holds etcd's leader), safe-node, safe-leader (the
//! same at the default timings) and switchover; all of them unless some are named. Figures stand beside their bars; if one is missed,
//! the program says so and ends with status 1. Needs root, etcd, redis-server, ip, nsenter and a C compiler.

use std::time::Instant;

use kit::field::{self, eventually, Field, Plan};
use nix::sys::signal::Signal;

mod client;
#[path = "../../tests/cluster/mod.rs"]
#[allow(dead_code)]
mod kit;

use client::{Idle, Prober};
use kit::ps;

/// Redis on all servers.
const SERVICE: &str = r#"
[[service]]
name = "cache"
command = ["redis-server", "--port", "7000", "--bind", "10.77.0.100", "--save", "", "--protected-mode", "no"]
nodes = ["a", "b", "c"]
address = "10.77.0.100/24"
every = "1s"
monitor = [{ tcp = 7000, every = "500ms", timeout = "2s", failures = 5 }]
"#;

/// The shortest timings that are allowed with elections of 200 ms.
const FAST: &str = "[timings]\nttl = \"1s\"\nelection = \"200ms\"\nrenew = \"150ms\"\nbeat = \"50ms\"\nsuspect = \"150ms\"\n";

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Process,
    Node { leader: bool },
    Switchover,
}

/// What is measured, at which timings, and how long it may take in milliseconds.
const CASES: [(&str, Fault, bool, f64); 6] = [
    ("process", Fault::Process, false, 300.0),
    ("node", Fault::Node { leader: false }, true, 1800.0),
    ("node-leader", Fault::Node { leader: true }, true, 2800.0),
    ("safe-node", Fault::Node { leader: false }, false, 3500.0),
    ("safe-leader", Fault::Node { leader: true }, false, 5500.0),
    ("switchover", Fault::Switchover, false, 300.0),
];
/// From the claim to the first error that a client sees.
const ERROR_BAR: f64 = 100.0;

/// Times of one run in milliseconds since the fault.
#[derive(Default)]
struct Run {
    detected: f64,
    claimed: f64,
    announced: f64,
    answered: f64,
    /// From the claim to a refusal or reset, of new and of idle clients.
    errors: Vec<f64>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// When, since `from`, an agent wrote a line about the service that begins with `what`, by its own clock.
fn said(field: &Field, node: &str, from: u64, what: &str) -> Option<u64> {
    let log = field.file(&format!("agent-{node}"));
    let moment = |line: &str| line.strip_prefix("stillframe: ")?.split_once(' ').and_then(|(at, rest)| Some((at.parse::<u64>().ok()?, rest.split_once("cache: ")?.1.to_owned())));
    log.lines().filter_map(moment).find(|(at, text)| *at >= from && text.starts_with(what)).map(|(at, _)| at)
}

struct Bench {
    field: Field,
    keys: usize,
}

impl Bench {
    /// Redis runs, is filled, and a frame of all that is committed.
    fn new(fast: bool, keys: usize) -> Bench {
        let plan = if fast { Plan { services: SERVICE, timings: FAST, pace: (20, 200), ..Plan::default() } } else { Plan { services: SERVICE, ..Plan::default() } };
        let field = Field::of(&plan);
        field.running("cache");
        eventually("redis fills", || client::fill(keys).ok());
        field.frames(3);
        Bench { field, keys }
    }

    /// One fault, and what clients and agents say of it.
    fn run(&mut self, fault: Fault) -> Run {
        let owner = self.field.running("cache");
        let at = field::NODES.iter().position(|node| *node == owner).expect("one of ours");
        if let Fault::Node { leader } = fault {
            self.field.lead(if leader { at } else { (at + 1) % 3 });
        }
        self.field.frames(2);
        let (prober, idle) = (Prober::start(), Idle::start());
        // Its connection is in the next frame.
        self.field.frames(2);
        let begun = client::now();
        match fault {
            Fault::Process => {
                let redis = self.process("redis-server");
                let killed = client::now();
                self.field.signal(&[redis], Signal::SIGKILL);
                return self.measure(killed, &owner, fault, prober, idle);
            }
            Fault::Node { .. } => self.field.kill_node(at),
            Fault::Switchover => drop(self.field.operated(&["switchover", "cache"])),
        }
        let run = self.measure(begun, &owner, fault, prober, idle);
        if matches!(fault, Fault::Node { .. }) {
            self.field.revive(at);
            self.field.settle();
            eventually("it stands by again", || (self.field.view().nodes.len() == 3).then_some(()));
        }
        run
    }

    fn process(&self, name: &str) -> i32 {
        let is = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name) && ps::alive(*pid);
        let below = (0..3).flat_map(|at| self.field.processes(at)).find(is);
        below.expect("redis runs below an agent")
    }

    fn measure(&self, begun: f64, owner: &str, fault: Fault, prober: Prober, idle: Idle) -> Run {
        let stall = prober.stall(begun);
        let node = eventually("it runs", || Some(self.field.running("cache")).filter(|node| fault == Fault::Process || node != owner));
        let since = |what: &str| said(&self.field, &node, begun as u64, what).map(|at| at as f64);
        let found = if fault == Fault::Process { since("ended") } else { since("has no owner") }.expect("the fault was found");
        // Who owns it already has no need to claim it.
        let claimed = if fault == Fault::Process { found } else { since("claimed").expect("a claim") };
        let announced = since("its address is announced").expect("an announcement");
        assert_eq!(client::count().expect("redis answers"), self.keys, "all keys are there");
        let errors = [stall.error, idle.error()].into_iter().flatten().map(|at| at - claimed).collect();
        let from = if fault == Fault::Switchover { stall.last } else { begun };
        Run { detected: found - from, claimed: claimed - from, announced: announced - from, answered: stall.first - from, errors }
    }
}

/// One line of the table; how many bars are missed.
fn report(name: &str, bar: f64, runs: &[Run]) -> usize {
    let part = |pick: &dyn Fn(&Run) -> f64| median(runs.iter().map(pick).collect());
    let all = part(&|run| run.answered);
    let worst = runs.iter().map(|run| run.answered).fold(0.0, f64::max);
    let missed = all > bar;
    let parts = [part(&|run| run.detected), part(&|run| run.claimed - run.detected), part(&|run| run.announced - run.claimed), part(&|run| run.answered - run.announced)];
    println!("{name:<12}{:>8.0}{:>8.0}{:>10.0}{:>9.0}{all:>9.0}{worst:>8.0}{bar:>8.0}{}", parts[0], parts[1], parts[2], parts[3], if missed { " MISSED" } else { "" });
    usize::from(missed)
}

/// The same for the errors that clients see while redis is away.
fn report_errors(errors: Vec<f64>) -> usize {
    let (all, count, worst) = (median(errors.clone()), errors.len(), errors.iter().copied().fold(0.0, f64::max));
    let missed = all > ERROR_BAR;
    println!("claim -> a client sees an error, of {count}: {all:.0} ms, worst {worst:.0} (bar {ERROR_BAR:.0}{})", if missed { " MISSED" } else { "" });
    usize::from(missed)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let runs = words.iter().find_map(|word| word.parse().ok()).unwrap_or(10);
    let wanted = |name: &str| words.iter().all(|word| word.parse::<usize>().is_ok()) || words.iter().any(|word| word == name);
    let mib: usize = std::env::var("STILLFRAME_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(256);
    let (begun, mut missed, mut errors) = (Instant::now(), 0, Vec::new());
    println!("redis with {mib} MiB, medians of {runs}, in ms; load {}", std::fs::read_to_string("/proc/loadavg")?.trim());
    println!("{:<12}{:>8}{:>8}{:>10}{:>9}{:>9}{:>8}{:>8}", "", "detect", "claim", "announce", "restore", "total", "worst", "bar");
    for fast in [true, false] {
        let cases: Vec<_> = CASES.iter().filter(|(name, _, speed, _)| *speed == fast && wanted(name)).collect();
        if cases.is_empty() {
            continue;
        }
        let mut bench = Bench::new(fast, mib * 1024);
        for (name, fault, _, bar) in cases {
            let mut done: Vec<Run> = (0..runs).map(|_| bench.run(*fault)).collect();
            missed += report(name, *bar, &done);
            let taken = matches!(fault, Fault::Node { .. });
            errors.extend(done.iter_mut().filter(|_| taken).flat_map(|run| std::mem::take(&mut run.errors)));
        }
    }
    if !errors.is_empty() {
        missed += report_errors(errors);
    }
    println!("\n{missed} bars missed; {:.0} s", begun.elapsed().as_secs_f64());
    match missed {
        0 => Ok(()),
        _ => Err("a figure is above its bar".into()),
    }
}
