//! Real programs under load: each is framed while it works, killed with SIGKILL, restored, and has to go on.
//!
//! Needs root and the programs, which `tests/run` installs.

#[path = "../kit/mod.rs"]
#[allow(dead_code)] // every test binary uses its part
mod kit;

mod databases;
mod runtimes;
mod screens;
mod shells;
mod web;

use kit::Stage;

/// How a second instance gets its process ids.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// The frame's own, in our pid namespace.
    SamePids,
    /// The frame's own, in a pid namespace of its own.
    Isolated,
}

const WAYS: [Way; 2] = [Way::SamePids, Way::Isolated];

impl Way {
    /// Restores; gives the root as we see it.
    fn restore(self, stage: &Stage, frame: &str, args: &[&str]) -> i32 {
        match self {
            Way::SamePids => stage.restore(frame, args),
            Way::Isolated => stage.restore(frame, &[args, &["--isolate"]].concat()),
        }
    }
}

/// Runs a test body once for every way.
fn each_way(body: impl Fn(&Stage, Way)) {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root");
    for way in WAYS {
        eprintln!("{way:?}");
        body(&Stage::new(), way);
    }
}
