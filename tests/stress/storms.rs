//! Checkpoints of targets that change as fast as they can: success or one clear line, and no harm.

use std::process::Command;

use crate::assert_one_line;
use crate::kit::{build, rounds, Stage};
use crate::Dice;

fn storm(kind: &str) {
    let stage = Stage::new();
    let mut live = stage.start(Command::new(build("stress", "storm")).arg(kind));
    stage.await_above("beat", 16);
    let mut frames = Vec::new();
    let attempts = rounds(12, 200);
    for _ in 0..attempts {
        match stage.try_checkpoint(live.pid(), &[]) {
            Ok(report) => frames.push(report.frame),
            Err(e) => {
                assert_one_line(&e);
                eprintln!("{kind}: {e}");
            }
        }
        stage.await_above("beat", stage.number("beat").unwrap());
        live.assert_alive();
    }
    eprintln!("{kind}: {} of {attempts} checkpoints succeeded", frames.len());
    assert!(frames.len() * 2 > attempts, "most checkpoints should succeed");
    assert_eq!(stage.stored().iter().filter(|path| !path.ends_with(".lock")).count(), frames.len(), "{:?}", stage.stored());
    live.kill();
    for frame in frames.iter().rev().take(5) {
        std::fs::write(stage.work("beat"), "0").unwrap();
        stage.restore(frame, &[]);
        let first = stage.await_above("beat", 0);
        stage.await_above("beat", first + 64);
        stage.kill_all();
    }
}

#[test]
fn fork_storm() {
    storm("forks");
}

#[test]
fn vfork_storm() {
    storm("vforks");
}

#[test]
fn thread_storm() {
    storm("threads");
}

#[test]
fn mapping_storm() {
    storm("mappings");
}

#[test]
fn exec_storm() {
    storm("execs");
}

#[test]
fn the_target_exits_during_the_checkpoint() {
    let stage = Stage::new();
    let program = build("stress", "storm");
    let mut dice = Dice(7);
    let mut frames = 0;
    for _ in 0..rounds(40, 400) {
        let live = stage.start(Command::new(&program).args(["exits", &dice.below(12_000).to_string()]));
        match stage.try_checkpoint(live.pid(), &[]) {
            Ok(_) => frames += 1,
            Err(e) => assert_one_line(&e),
        }
        assert_eq!(live.finish().code(), Some(5), "its own exit status");
    }
    eprintln!("{frames} frames were taken before the exit");
    assert_eq!(stage.stored().iter().filter(|path| !path.ends_with(".lock")).count(), frames, "{:?}", stage.stored());
}
