//! Language runtimes with threads, signals and moving garbage collectors of their own.

use std::path::PathBuf;
use std::process::Command;

use crate::{both_ways, Way};
use crate::kit::{bounded, need, Stage};

fn source(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/programs", name].iter().collect()
}

/// The program counts in the file `beat` and says in `failed` what went wrong.
fn beats_on_after_a_restore(stage: &Stage, way: Way, mut program: Command) {
    let mut live = stage.start(&mut program);
    let before = stage.await_above("beat", 20);
    let report = stage.checkpoint(live.pid(), &[]);
    eprintln!("{report:?}");
    stage.await_above("beat", stage.number("beat").unwrap() + 20);
    live.assert_alive();
    live.kill();
    let after = stage.number("beat").unwrap();
    std::fs::remove_file(stage.work("beat")).unwrap();
    stage.hold_place(".beat");
    way.restore(stage, &report.frame, &[]);
    let first = stage.await_above("beat", 0);
    assert!((before..=after).contains(&first), "{first} is not between {before} and {after}");
    stage.await_above("beat", after + 20);
}

fn go_schedules_and_collects(stage: &Stage, way: Way) {
    let program = stage.work("churn");
    let mut go = Command::new(need("go"));
    go.env("GOCACHE", stage.work("cache")).env("GO111MODULE", "off").arg("build").arg("-o").arg(&program).arg(source("churn.go"));
    bounded(&mut go).unwrap_or_else(|e| panic!("go build: {e}"));
    beats_on_after_a_restore(stage, way, Command::new(program));
}

fn java_compiles_and_collects(stage: &Stage, way: Way) {
    let mut javac = Command::new(need("javac"));
    bounded(javac.arg("-d").arg(stage.work("")).arg(source("Churn.java"))).unwrap_or_else(|e| panic!("javac: {e}"));
    let mut java = Command::new(need("java"));
    java.args(["-Xmx256m", "-cp"]).arg(stage.work("")).arg("Churn");
    beats_on_after_a_restore(stage, way, java);
}

both_ways! { go_schedules_and_collects java_compiles_and_collects }
