//! Telling the caller how far a transfer is, and asking whether to go on.

use std::fmt;
use std::sync::Arc;

/// How far a transfer is; all counts are bytes. As JSON it is a line of `--progress-json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// The round that was announced last.
    pub round: u32,
    /// Memory and files fed so far, zeros included.
    pub fed: u64,
    /// What was announced so far: `fed` at the end, if that was right.
    pub expected: u64,
    /// Length of the frame so far.
    pub written: u64,
}

/// Is told about twenty times a second, on the caller's thread.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(&Status) -> bool + Send + Sync>);

impl Progress {
    /// `tell` gives whether to go on; if not, the transfer ends with [`Kind::Cancelled`](crate::Kind::Cancelled).
    pub fn new(tell: impl Fn(&Status) -> bool + Send + Sync + 'static) -> Progress {
        Progress(Arc::new(tell))
    }

    /// Tells, and asks whether to go on.
    pub fn tell(&self, status: &Status) -> bool {
        self.0(status)
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}
