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

impl Way {
    /// Restores; gives the root as we see it.
    fn restore(self, stage: &Stage, frame: &str, args: &[&str]) -> i32 {
        match self {
            Way::SamePids => stage.restore(frame, args),
            Way::Isolated => stage.restore(frame, &[args, &["--isolate", "--netns", "host"]].concat()),
        }
    }
}

/// One test for every way, each in a stage of its own.
macro_rules! both_ways {
    ($($name:ident)*) => {
        mod same_pids {
            $(#[test] fn $name() { super::$name(&$crate::kit::Stage::new(), $crate::Way::SamePids); })*
        }
        mod isolated {
            $(#[test] fn $name() { super::$name(&$crate::kit::Stage::new(), $crate::Way::Isolated); })*
        }
    };
}
use both_ways;
