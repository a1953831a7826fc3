//! Tickets.

use std::ffi::c_char;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use stillframe::region::Level;

use crate::convert::{give, out};
use crate::guard::{entry, usage};
use crate::handles;
use crate::options::{give_sized, SfInfo};

/// A snapshot on its way to the store. Opaque.
pub struct SfTicket {
    _private: [u8; 0],
}

/// Waits until a snapshot has reached `level` (enum sf_level), for `timeout_ms` milliseconds at most, or for as long as it takes
/// if that is negative. `info` may be NULL; else its `size` is set, and it is filled in.
///
/// The status is that of the snapshot: what made it fail, SF_ERR_CANCELLED, SF_ERR_BUSY if it was skipped; SF_ERR_TIMED_OUT if
/// it takes longer, and then it goes on. Any thread may call it, several at once.
#[no_mangle]
pub unsafe extern "C" fn sf_wait(ticket: *const SfTicket, level: i32, timeout_ms: i64, info: *mut SfInfo) -> i32 {
    entry(|| {
        let ticket = handles::ticket(ticket)?;
        let level = Level::from_number(level).ok_or_else(|| usage(format!("there is no level {level}")))?;
        let timeout = u64::try_from(timeout_ms).map_or(Duration::MAX, Duration::from_millis);
        let found = ticket.wait(level, timeout)?;
        // SAFETY: the caller keeps the contract of the header.
        unsafe { give_sized(&SfInfo::of(&found, ticket.is_skipped()), info) }
    })
}

/// A descriptor for event loops: readable when the snapshot has reached a level or failed; reading eight bytes resets it.
///
/// `*fd` belongs to the ticket and is valid until sf_ticket_free. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_ticket_fd(ticket: *const SfTicket, fd: *mut i32) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let slot = unsafe { out(fd, "the place for the descriptor") }?;
        *slot = handles::ticket(ticket)?.as_fd().as_raw_fd();
        Ok(())
    })
}

/// What is known now of a snapshot, in `*info`, whose `size` is set. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_ticket_info(ticket: *const SfTicket, info: *mut SfInfo) -> i32 {
    entry(|| {
        let ticket = handles::ticket(ticket)?;
        if info.is_null() {
            return Err(usage("the place for the info is NULL"));
        }
        // SAFETY: the caller keeps the contract of the header.
        unsafe { give_sized(&SfInfo::of(&ticket.info(), ticket.is_skipped()), info) }
    })
}

/// Why its memory was frozen the way it was, in words. `*len` is the room at `text` and becomes its length with the zero at its end;
/// `text` may be NULL to ask for the length alone. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_ticket_why(ticket: *const SfTicket, text: *mut c_char, len: *mut usize) -> i32 {
    entry(|| {
        let why = handles::ticket(ticket)?.info().why;
        // SAFETY: the caller keeps the contract of the header.
        unsafe { give(format!("{why}\0").as_bytes(), text.cast(), len) }
    })
}

/// Gives a snapshot up, if it is not stored yet; the ticket stays valid. Returns at once. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_cancel(ticket: *mut SfTicket) -> i32 {
    entry(|| {
        handles::ticket(ticket)?.cancel();
        Ok(())
    })
}

/// Frees a ticket; the snapshot goes on. NULL is allowed. No other thread may be using the ticket's descriptor.
#[no_mangle]
pub unsafe extern "C" fn sf_ticket_free(ticket: *mut SfTicket) -> i32 {
    entry(|| {
        if !ticket.is_null() {
            handles::ticket(ticket)?;
            handles::remove(ticket);
        }
        Ok(())
    })
}
