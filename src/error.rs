//! Errors say what failed, on which process, descriptor or path, why, and what to do about it, in one line.

use std::fmt;
use std::io;
use std::path::Path;

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is; stable, so that callers can branch on it. The numbers are those of the C interface.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Kind {
    /// A system call or a file operation failed.
    Io = 1,
    /// The process holds state that cannot be put into a frame, or a frame needs what this host lacks.
    Refused = 2,
    /// The frame is damaged, truncated or of an unknown version.
    Corrupt = 3,
    /// The named frame, process or file does not exist.
    NotFound = 4,
    /// The target went away, or changed under our hands.
    TargetGone = 5,
    /// The target cannot be stopped just now, or a snapshot is under way; trying again may help.
    Busy = 6,
    /// A privilege is missing; the message names it.
    Privilege = 7,
    /// The caller's arguments make no sense together.
    Usage = 8,
    /// The caller gave it up.
    Cancelled = 9,
    /// It was not done in the time that the caller gave it.
    TimedOut = 10,
    /// Another program holds what only one can have; the message names the holder.
    Held = 11,
}

impl Kind {
    /// Its number in the C interface, never 0.
    pub fn code(self) -> i32 {
        self as i32
    }
}

/// One failure: its kind, a one-line message and, where there is one, the operating system's error.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<io::Error>,
}

impl Error {
    /// A failure of `kind` described by `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), source: None }
    }

    /// State that cannot be frozen or thawed; the message names pid, object, reason and remedy.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// A damaged frame.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    /// An operating system error while doing `what`.
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let kind = match source.raw_os_error() {
            Some(libc::ESRCH) => Kind::TargetGone,
            Some(libc::EPERM | libc::EACCES) => Kind::Privilege,
            Some(libc::ENOENT) => Kind::NotFound,
            _ => Kind::Io,
        };
        Error { kind, message: what.into(), source: Some(source) }
    }

    /// The last error of a failed libc call, while doing `what`.
    pub fn last_os(what: impl Into<String>) -> Self {
        Self::io(what, io::Error::last_os_error())
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The operating system's error number, where one was involved.
    pub fn errno(&self) -> Option<i32> {
        self.source.as_ref().and_then(io::Error::raw_os_error)
    }

    /// The same failure, with what was being attempted put in front.
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

/// A copy says the same; of a source that is no plain error number it keeps the kind and the words.
impl Clone for Error {
    fn clone(&self) -> Self {
        let copy = |e: &io::Error| e.raw_os_error().map_or_else(|| io::Error::new(e.kind(), e.to_string()), io::Error::from_raw_os_error);
        Error { kind: self.kind, message: self.message.clone(), source: self.source.as_ref().map(copy) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {}", self.message, source),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s as _)
    }
}

/// Puts words on a bare operating system error.
pub trait Context<T> {
    /// Describes what was being done when the error came.
    fn context(self, what: impl fmt::Display) -> Result<T>;
    /// The same for an operation on a path.
    fn at(self, verb: &str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Error::io(what.to_string(), e))
    }

    fn at(self, verb: &str, path: &Path) -> Result<T> {
        self.map_err(|e| Error::io(format!("cannot {verb} {}", path.display()), e))
    }
}
