//! Arguments of C, checked.

use std::ffi::{c_char, CStr};

use stillframe::Result;

use crate::guard::usage;

/// A string of the caller's; none for NULL.
///
/// # Safety
///
/// If not NULL, it must end with a zero and stay as it is meanwhile.
pub unsafe fn optional<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, and the caller promises the rest.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| usage(format!("{what} is not UTF-8")))
}

/// A string of the caller's.
///
/// # Safety
///
/// As [`optional`].
pub unsafe fn required<'a>(text: *const c_char, what: &str) -> Result<&'a str> {
    // SAFETY: the caller promises the same.
    unsafe { optional(text, what) }?.ok_or_else(|| usage(format!("{what} is NULL")))
}

/// Room for an answer.
///
/// # Safety
///
/// If not NULL, it must be writable, and nobody else's meanwhile.
pub unsafe fn out<'a, T>(slot: *mut T, what: &str) -> Result<&'a mut T> {
    // SAFETY: the caller promises it.
    unsafe { slot.as_mut() }.ok_or_else(|| usage(format!("{what} is NULL")))
}

/// Bytes of the caller's; NULL stands for none if there are to be none.
///
/// # Safety
///
/// If not NULL, `len` bytes must be readable and stay as they are meanwhile.
pub unsafe fn bytes<'a>(start: *const u8, len: usize, what: &str) -> Result<&'a [u8]> {
    if start.is_null() || len == 0 {
        return if len == 0 { Ok(&[]) } else { Err(usage(format!("{what} is NULL"))) };
    }
    // SAFETY: not NULL, and the caller promises the rest.
    Ok(unsafe { std::slice::from_raw_parts(start, len) })
}

/// Copies `found` to the caller's `buf` of `*len` bytes, and says in `*len` how many there are, even if there is no room.
///
/// # Safety
///
/// `len` must be writable, and so must be as many bytes at `buf` as it says, unless that is NULL.
pub unsafe fn give(found: &[u8], buf: *mut u8, len: *mut usize) -> Result<()> {
    // SAFETY: the caller promises it.
    let len = unsafe { out(len, "the length") }?;
    let room = std::mem::replace(len, found.len());
    if buf.is_null() {
        return Ok(());
    }
    if room < found.len() {
        return Err(usage(format!("there is room for {room} bytes, not for {}", found.len())));
    }
    // SAFETY: there is room, and it is the caller's alone.
    unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), buf, found.len()) };
    Ok(())
}
