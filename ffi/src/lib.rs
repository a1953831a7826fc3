//! The C interface of Stillframe. `include/stillframe.h` is made from this crate by cbindgen, and a test compares them: the
//! comments here are the manual.
//!
//! Every entry goes through [`guard::entry`]: no panic crosses the boundary, and a failure leaves its message. Handles are
//! numbers in a table, not addresses, so that a handle that was freed, or is of another kind, is told from a live one.

// What a caller has to keep is said in the words of C at each function.
#![allow(clippy::missing_safety_doc)]

mod convert;
mod frame;
mod guard;
mod handles;
mod options;
mod session;
mod ticket;
mod whole;

pub use frame::*;
pub use guard::{sf_error_code, sf_error_message, SfStatus};
pub use options::*;
pub use session::*;
pub use ticket::*;
pub use whole::*;

use std::ffi::c_char;

/// The version of the library, "MAJOR.MINOR.PATCH".
///
/// Never NULL; lives as long as the program. Any thread may call it.
#[no_mangle]
pub extern "C" fn sf_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
