//! The target is shown no child and no signal that it did not make itself.

use std::process::Command;

use crate::kit::{build, ps, rounds, Stage};

fn sees_no_child(args: &[&str]) {
    let stage = Stage::new();
    let mut live = stage.start(Command::new(build("stress", "childless")).args(args));
    stage.await_above("beat", 0);
    for round in 0..rounds(50, 500) {
        // Slow compression now and then: the longer the transfer, the more there would be to see.
        let how = if round % 5 == 0 { "zstd:19" } else { "auto" };
        stage.checkpoint(live.pid(), &["--compress", how]);
        stage.await_above("beat", stage.number("beat").unwrap());
        live.assert_alive();
    }
    assert!(ps::children(live.pid()).is_empty());
}

#[test]
fn no_child_and_no_sigchld() {
    sees_no_child(&[]);
}

#[test]
fn no_child_and_no_sigchld_for_a_subreaper() {
    sees_no_child(&["subreaper"]);
}
