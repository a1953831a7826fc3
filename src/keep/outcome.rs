//! How a program ended.

use std::fmt;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
    /// Nobody knows: its exit fell into a checkpoint, and this kernel does not tell afterwards.
    Unseen,
}

impl Outcome {
    /// From a wait status.
    pub fn of(status: i32) -> Outcome {
        if libc::WIFSIGNALED(status) {
            return Outcome::Killed(libc::WTERMSIG(status));
        }
        Outcome::Exited(libc::WEXITSTATUS(status))
    }

    /// Whether its work is done.
    pub fn is_success(self) -> bool {
        self == Outcome::Exited(0)
    }

    /// The exit status that passes it on, as a shell does.
    pub fn status(self) -> i32 {
        match self {
            Outcome::Exited(status) => status,
            Outcome::Killed(signal) => 128 + signal,
            Outcome::Unseen => 1,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Exited(status) => write!(f, "exited with status {status}"),
            Outcome::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Outcome::Unseen => f.write_str("ended during a checkpoint, its status unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_understood() {
        assert_eq!(Outcome::of(0), Outcome::Exited(0));
        assert_eq!(Outcome::of(3 << 8).status(), 3);
        assert_eq!(Outcome::of(9).status(), 137);
        assert_eq!(Outcome::of(11 | 0x80), Outcome::Killed(11));
        assert!(!Outcome::Unseen.is_success());
    }
}
