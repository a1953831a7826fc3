//! The table of live handles. A handle is a number that is never used twice, in the shape of a pointer.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use stillframe::region::{Snapshot, Ticket};
use stillframe::Result;

use crate::guard::usage;
use crate::session::Open;

/// What a handle stands for.
#[derive(Clone)]
pub enum Object {
    Session(Arc<Open>),
    Ticket(Arc<Ticket>),
    Frame(Arc<Snapshot>),
}

struct Table {
    next: usize,
    live: HashMap<usize, Object>,
}

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(|| Mutex::new(Table { next: 1, live: HashMap::new() }));

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a handle.
pub fn add<H>(object: Object) -> *mut H {
    let mut table = table();
    // Odd, so that nothing that malloc returned is ever taken for one.
    let number = table.next * 2 + 1;
    table.next += 1;
    table.live.insert(number, object);
    number as *mut H
}

fn find<H>(handle: *const H, what: &str) -> Result<Object> {
    match table().live.get(&(handle as usize)) {
        Some(object) => Ok(object.clone()),
        None if handle.is_null() => Err(usage(format!("the {what} is NULL"))),
        None => Err(usage(format!("the {what} is none that is open; was it closed?"))),
    }
}

fn other(what: &str) -> stillframe::Error {
    usage(format!("the handle is not of a {what}"))
}

/// The session behind a handle.
pub fn session<H>(handle: *const H) -> Result<Arc<Open>> {
    match find(handle, "session")? {
        Object::Session(session) => Ok(session),
        _ => Err(other("session")),
    }
}

/// The ticket behind a handle.
pub fn ticket<H>(handle: *const H) -> Result<Arc<Ticket>> {
    match find(handle, "ticket")? {
        Object::Ticket(ticket) => Ok(ticket),
        _ => Err(other("ticket")),
    }
}

/// The frame behind a handle.
pub fn frame<H>(handle: *const H) -> Result<Arc<Snapshot>> {
    match find(handle, "frame")? {
        Object::Frame(frame) => Ok(frame),
        _ => Err(other("frame")),
    }
}

/// Ends a handle.
pub fn remove<H>(handle: *const H) {
    // Outside of the lock: what goes may take its time.
    let gone = table().live.remove(&(handle as usize));
    drop(gone);
}
