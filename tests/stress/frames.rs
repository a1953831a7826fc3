//! Every frame of a busy writer is consistent: the restored instance checks itself.

use std::process::Command;

use crate::kit::{build, eventually, ps, rounds, Stage};

/// Frames kept at a time; a long run does with batches what would not fit a small disk.
const BATCH: usize = 15;

fn verify(stage: &Stage, what: &str) -> u64 {
    stage.write(&format!("verify.{what}"), "");
    let answer = format!("verified.{what}");
    let moves = stage.await_above(&answer, 0);
    std::fs::remove_file(stage.work(&answer)).unwrap();
    moves
}

/// Restores a frame, lets it check itself, and waits for its end.
fn verify_restored(stage: &Stage, frame: &str) -> u64 {
    let root = stage.restore(frame, &[]);
    let moves = verify(stage, "last");
    eventually("the end of the restored instance", || (!ps::alive(root)).then_some(()));
    stage.assert_unharmed();
    stage.kill_all();
    std::fs::remove_file(stage.work("verify.last")).unwrap();
    moves
}

fn one_batch(stage: &Stage) {
    let mut live = stage.start(&mut Command::new(build("stress", "bank")));
    stage.await_file("ready");
    std::fs::remove_file(stage.work("ready")).unwrap();
    let mut taken = Vec::new();
    for round in 0..BATCH {
        let before = if round % 5 == 0 { verify(stage, "live") } else { 0 };
        taken.push((before, stage.checkpoint(live.pid(), &["--compress", "zstd:1"])));
        live.assert_alive();
    }
    let most = verify(stage, "live");
    live.kill();
    for (before, report) in taken {
        assert_eq!(report.processes, 2);
        // It made some more moves between its restore and the halt.
        let moves = verify_restored(stage, &report.frame);
        assert!(moves >= before, "{} is from before the frame: {moves} moves, {before} before it", report.frame);
        std::fs::remove_file(stage.frame_file(&report.frame)).unwrap();
    }
    assert!(most > 0);
}

#[test]
fn every_frame_of_a_busy_writer_is_consistent() {
    let stage = Stage::new();
    for batch in 0..rounds(1, 20) {
        eprintln!("batch {batch}");
        one_batch(&stage);
    }
}
