//! Checkpoints under stress: killed checkpointers, hostile targets, failing stores.
//!
//! `STILLFRAME_STRESS=1` asks for the long variants. Needs root and a C compiler.

#[path = "../kit/mod.rs"]
#[allow(dead_code)] // every test binary uses its part
mod kit;

mod children;
mod faults;
mod frames;
mod kills;
mod storms;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end.max(1)
    }
}

/// An error has to be one line that starts with the name of the command.
fn assert_one_line(error: &str) {
    assert!(error.starts_with("stillframe: ") && error.lines().count() == 1, "not one line: {error:?}");
}
