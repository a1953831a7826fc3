//! Around every entry: panics caught, failures kept for the thread.

use std::cell::RefCell;
use std::ffi::{c_char, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};

use stillframe::{Error, Kind, Result};

/// What functions return. The numbers are stable; new ones may come.
#[allow(non_camel_case_types)]
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SfStatus {
    /// It worked.
    SF_OK = 0,
    /// A system call or a file operation failed.
    SF_ERR_IO = 1,
    /// The program holds what cannot be kept, or this machine lacks what is needed.
    SF_ERR_REFUSED = 2,
    /// The frame is damaged, truncated or of an unknown version.
    SF_ERR_CORRUPT = 3,
    /// There is no such frame, region or process.
    SF_ERR_NOT_FOUND = 4,
    /// The other program went away.
    SF_ERR_TARGET_GONE = 5,
    /// A snapshot is in flight; later it may work.
    SF_ERR_BUSY = 6,
    /// A privilege is missing; the message names it.
    SF_ERR_PRIVILEGE = 7,
    /// The arguments make no sense: NULL, a handle that is not live, a name that cannot be.
    SF_ERR_USAGE = 8,
    /// It was given up.
    SF_ERR_CANCELLED = 9,
    /// It was not done in time.
    SF_ERR_TIMED_OUT = 10,
    /// Another program holds the name; the message says which.
    SF_ERR_HELD = 11,
    /// The library has a mistake in it; the message says where.
    SF_ERR_PANIC = 100,
}

thread_local! {
    static LAST: RefCell<(i32, CString)> = RefCell::new((0, CString::default()));
}

fn keep(code: i32, message: &str) -> i32 {
    let message = CString::new(message.replace('\0', "?")).unwrap_or_default();
    LAST.set((code, message));
    code
}

/// Runs the body of a function of the interface; returns its status.
pub fn entry(work: impl FnOnce() -> Result<()>) -> i32 {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => SfStatus::SF_OK as i32,
        Ok(Err(e)) => keep(e.kind().code(), &e.to_string()),
        Err(cause) => {
            let words = cause.downcast_ref::<&str>().map(|words| (*words).to_owned()).or_else(|| cause.downcast_ref::<String>().cloned());
            keep(SfStatus::SF_ERR_PANIC as i32, &format!("a mistake in the library: {}", words.unwrap_or_default()))
        }
    }
}

/// The same for functions that answer yes or no: a failure is a no.
pub fn answer(work: impl FnOnce() -> Result<bool>) -> i32 {
    let mut yes = false;
    let status = entry(|| work().map(|found| yes = found));
    i32::from(status == 0 && yes)
}

/// Arguments that make no sense.
pub fn usage(what: impl Into<String>) -> Error {
    Error::new(Kind::Usage, what)
}

/// What the last function that failed on this thread has to say, in one line; "" before any has.
///
/// Never NULL. It belongs to the library and is valid until the next function fails on this thread. Functions that succeed
/// leave it alone. Any thread may call it, and sees its own.
#[no_mangle]
pub extern "C" fn sf_error_message() -> *const c_char {
    LAST.with_borrow(|last| last.1.as_ptr())
}

/// The status of the last function that failed on this thread; SF_OK before any has.
///
/// Any thread may call it, and sees its own.
#[no_mangle]
pub extern "C" fn sf_error_code() -> i32 {
    LAST.with_borrow(|last| last.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_crate() {
        let pairs = [
            (Kind::Io, SfStatus::SF_ERR_IO),
            (Kind::Refused, SfStatus::SF_ERR_REFUSED),
            (Kind::Corrupt, SfStatus::SF_ERR_CORRUPT),
            (Kind::NotFound, SfStatus::SF_ERR_NOT_FOUND),
            (Kind::TargetGone, SfStatus::SF_ERR_TARGET_GONE),
            (Kind::Busy, SfStatus::SF_ERR_BUSY),
            (Kind::Privilege, SfStatus::SF_ERR_PRIVILEGE),
            (Kind::Usage, SfStatus::SF_ERR_USAGE),
            (Kind::Cancelled, SfStatus::SF_ERR_CANCELLED),
            (Kind::TimedOut, SfStatus::SF_ERR_TIMED_OUT),
            (Kind::Held, SfStatus::SF_ERR_HELD),
        ];
        assert!(pairs.iter().all(|(kind, status)| kind.code() == *status as i32));
    }

    #[test]
    fn a_panic_becomes_a_status_and_a_message() {
        assert_eq!(entry(|| panic!("a \0 test")), 100);
        // SAFETY: the message is a string that lives until the next failure of this thread.
        let words = unsafe { std::ffi::CStr::from_ptr(sf_error_message()) }.to_str().unwrap();
        assert_eq!((sf_error_code(), words), (100, "a mistake in the library: a ? test"));
    }
}
