//! The C interface of Stillframe: so far the version only; `include/stillframe.h` declares it.

use std::ffi::c_char;

/// The version of the library as a NUL-terminated string that lives as long as the program.
#[no_mangle]
pub extern "C" fn sf_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}
