//! Sessions and their regions.

use std::collections::HashMap;
use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stillframe::region::{Foreign, Region, Session};
use stillframe::store::{default_dir, DirStore, Store};
use stillframe::{Error, Kind};

use crate::convert::{bytes, optional, out, required};
use crate::guard::{answer, entry, usage};
use crate::handles::{self, Object};
use crate::options::{apply, SfHooks, SfOptions};
use crate::ticket::SfTicket;

/// A session of this program on a store: its regions and their snapshots. Opaque.
pub struct SfSession {
    _private: [u8; 0],
}

/// A session with the regions that were allocated in it.
pub struct Open {
    regions: Mutex<HashMap<String, Region<u8>>>,
    /// The session itself.
    pub session: Session,
}

impl Open {
    fn regions(&self) -> MutexGuard<'_, HashMap<String, Region<u8>>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a session named `name`, which is the name of its frames in the store. If the store has snapshots of that name, the
/// session goes on from the newest intact one (see sf_resume).
///
/// `options` and `hooks` may be NULL for what is usual; they are copied. The handle in `*session` is the caller's, to be closed
/// by sf_close. Any thread may use it, several at once.
///
/// SF_ERR_HELD: another program has a session of that name, which the message names. SF_ERR_CORRUPT: there are snapshots, and
/// none is intact.
#[no_mangle]
pub unsafe extern "C" fn sf_open(name: *const c_char, options: *const SfOptions, hooks: *const SfHooks, session: *mut *mut SfSession) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (name, slot) = unsafe { (required(name, "the name")?, out(session, "the place for the session")?) };
        *slot = std::ptr::null_mut();
        // SAFETY: as above.
        let builder = unsafe { apply(Session::builder(name), options, hooks) }?;
        let open = Open { regions: Mutex::default(), session: builder.open()? };
        *slot = handles::add(Object::Session(Arc::new(open)));
        Ok(())
    })
}

/// Closes a session: waits until its snapshots in flight are stored (sf_cancel them to be quicker), then frees its handle and
/// the memory of its regions by sf_region_alloc. Tickets stay valid. No other thread may be using the session or its regions.
///
/// The status is that of the last snapshot that failed and that nobody asked about; the session is closed in any case.
#[no_mangle]
pub unsafe extern "C" fn sf_close(session: *mut SfSession) -> i32 {
    entry(|| {
        let open = handles::session(session)?;
        handles::remove(session);
        match Arc::into_inner(open) {
            Some(open) => open.session.close(),
            None => Err(Error::new(Kind::Busy, "another thread is using the session; it is closed when that is done")),
        }
    })
}

/// The number of the snapshot that the session goes on from; 0 if it starts anew. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_resumed(session: *const SfSession, version: *mut u64) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let slot = unsafe { out(version, "the place for the version") }?;
        *slot = handles::session(session)?.session.resumed().map_or(0, |snapshot| snapshot.frame().seq());
        Ok(())
    })
}

/// The state of the snapshot that the session goes on from. `*len` is the room at `state` and becomes its length, 0 if there is
/// none; `state` may be NULL to ask for the length alone. SF_ERR_USAGE: there is no room for it. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_state(session: *const SfSession, state: *mut c_void, len: *mut usize) -> i32 {
    entry(|| {
        let open = handles::session(session)?;
        let found = open.session.resumed().map_or(Ok(Vec::new()), |snapshot| snapshot.state_bytes())?;
        // SAFETY: the caller keeps the contract of the header.
        unsafe { crate::convert::give(&found, state.cast(), len) }
    })
}

/// Allocates a region of `len` bytes: what the snapshot holds that the session goes on from, else zeros. It is aligned to 2 MiB
/// where it is that long, and uses huge pages where the kernel has them.
///
/// `*memory` belongs to the session: it is valid until sf_region_remove or sf_close. Any thread may call it.
///
/// SF_ERR_USAGE: the name is taken, or the snapshot's region of that name has another length. SF_ERR_REFUSED: the same address
/// is wanted and taken.
#[no_mangle]
pub unsafe extern "C" fn sf_region_alloc(session: *mut SfSession, name: *const c_char, len: usize, memory: *mut *mut c_void) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (name, slot) = unsafe { (required(name, "the name")?, out(memory, "the place for the memory")?) };
        *slot = std::ptr::null_mut();
        let open = handles::session(session)?;
        let mut region = open.session.alloc::<u8>(name, len)?;
        *slot = region.as_mut_ptr().cast();
        open.regions().insert(name.to_owned(), region);
        Ok(())
    })
}

/// Adds `len` bytes of the program's own from `memory` on as a region. They keep their content; sf_region_load puts back that of
/// the snapshot.
///
/// The memory stays the caller's, who keeps it mapped, readable and writable until sf_region_remove or sf_close. It must be
/// private: SF_ERR_REFUSED for shared mappings. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_region_add(session: *mut SfSession, name: *const c_char, memory: *mut c_void, len: usize) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (name, memory) = unsafe { (required(name, "the name")?, Foreign::new(memory.cast(), len)) };
        handles::session(session)?.session.register(name, memory)
    })
}

/// Fills a region that was added from the snapshot that the session goes on from. `loaded` may be NULL; it becomes 1, or 0 if
/// there is no snapshot with such a region, and then the memory is left alone. No other thread may use the memory meanwhile.
#[no_mangle]
pub unsafe extern "C" fn sf_region_load(session: *mut SfSession, name: *const c_char, loaded: *mut i32) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (name, slot) = unsafe { (required(name, "the name")?, loaded.as_mut()) };
        let found = handles::session(session)?.session.load(name)?;
        if let Some(slot) = slot {
            *slot = i32::from(found);
        }
        Ok(())
    })
}

/// Leaves `len` bytes from `offset` of a region out of every later snapshot; they come back as zero, or as they are when they
/// are loaded into memory of the program's own. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_region_exclude(session: *mut SfSession, name: *const c_char, offset: usize, len: usize) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let name = unsafe { required(name, "the name") }?;
        let open = handles::session(session)?;
        let end = offset.checked_add(len).ok_or_else(|| usage("offset and length are too large"))?;
        let regions = open.regions();
        match regions.get(name) {
            Some(region) => region.exclude(offset..end),
            None => open.session.exclude(name, offset as u64, len as u64),
        }
    })
}

/// Takes a region out of every later snapshot, and frees its memory if it came from sf_region_alloc. To be called before memory
/// of the program's own goes away. Snapshots in flight keep their content; a write-protected one is waited for, until it has read
/// the memory. No other thread may use the memory meanwhile.
#[no_mangle]
pub unsafe extern "C" fn sf_region_remove(session: *mut SfSession, name: *const c_char) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let name = unsafe { required(name, "the name") }?;
        let open = handles::session(session)?;
        let region = open.regions().remove(name);
        match region {
            Some(region) => drop(region),
            None => open.session.unregister(name)?,
        }
        Ok(())
    })
}

/// Whether it is time for a snapshot: 1 if the interval has passed or one was asked for from outside
/// (`stillframe checkpoint --name NAME`), and none is in flight; else, and for a handle that is not a live session, 0.
///
/// Cheap enough for an inner loop. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_due(session: *const SfSession) -> i32 {
    answer(|| Ok(handles::session(session)?.session.due()))
}

/// Whether the program should take a last snapshot and exit: 1 if its time limit has passed or somebody asked for it from
/// outside; else, and for a handle that is not a live session, 0. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_should_exit(session: *const SfSession) -> i32 {
    answer(|| Ok(handles::session(session)?.session.should_exit()))
}

/// Takes a snapshot of all regions, with `len` bytes of `state` beside them (NULL and 0 for none). Returns when memory is frozen;
/// it may be changed from then on. No other thread may write to a region meanwhile, unless SF_QUIESCE_SIGNAL stops them.
///
/// `ticket` may be NULL; else the handle in `*ticket` is the caller's, to be freed by sf_ticket_free. Any thread may call it.
///
/// SF_ERR_BUSY: one is in flight. SF_ERR_CANCELLED: the quiesce hook objects. What fails later is told by the ticket.
#[no_mangle]
pub unsafe extern "C" fn sf_snapshot(session: *mut SfSession, state: *const c_void, len: usize, ticket: *mut *mut SfTicket) -> i32 {
    // SAFETY: the same contract.
    unsafe { sf_snapshot_labelled(session, state, len, std::ptr::null(), std::ptr::null(), ticket) }
}

/// The same with a label, which sf_frame_label reads back; both strings are copied, and may be NULL for none. As there, the
/// handle in `*ticket` is the caller's, and any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_snapshot_labelled(session: *mut SfSession, state: *const c_void, len: usize, key: *const c_char, value: *const c_char, ticket: *mut *mut SfTicket) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (state, slot) = unsafe { (bytes(state.cast(), len, "the state")?, ticket.as_mut()) };
        // SAFETY: as above.
        let label = unsafe { optional(key, "the label")?.zip(optional(value, "the label's value")?) };
        let open = handles::session(session)?;
        let labels: Vec<(&str, &str)> = label.into_iter().collect();
        let mut handle = std::ptr::null_mut();
        let taken = open.session.snapshot_labelled(state, &labels).map(|ticket| {
            if slot.is_some() {
                handle = handles::add(Object::Ticket(Arc::new(ticket)));
            }
        });
        if let Some(slot) = slot {
            *slot = handle;
        }
        taken
    })
}

/// Deletes all but the newest `keep` snapshots of the session's name; `keep` is at least 1. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_retain(session: *mut SfSession, keep: usize) -> i32 {
    entry(|| handles::session(session)?.session.retain(keep).map(drop))
}

/// The numbers of the snapshots of `name`, the newest last. `*count` is the room at `versions`, in numbers, and becomes how many
/// there are; `versions` may be NULL to ask for that alone. They are listed, not checked: sf_frame_open with 0 finds the newest
/// intact one. SF_ERR_USAGE: there is no room for them.
///
/// `store` is a directory; NULL: as in struct sf_options. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_versions(store: *const c_char, name: *const c_char, versions: *mut u64, count: *mut usize) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (store, name, count) = unsafe { (optional(store, "the store")?, required(name, "the name")?, out(count, "the place for the count")?) };
        let store = store.map_or_else(default_dir, |store| Ok(PathBuf::from(store)))?;
        let found = DirStore::new(store).list(Some(name))?;
        let room = std::mem::replace(count, found.len());
        if versions.is_null() {
            return Ok(());
        }
        if room < found.len() {
            return Err(usage(format!("there is room for {room} numbers, not for {}", found.len())));
        }
        for (at, frame) in found.iter().enumerate() {
            // SAFETY: there is room, and it is the caller's alone.
            unsafe { versions.add(at).write(frame.seq()) };
        }
        Ok(())
    })
}

/// What made the last snapshot fail that failed, for programs that keep no tickets: its status, with its message; SF_OK if none has
/// failed since the last such call. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_take_failure(session: *mut SfSession) -> i32 {
    entry(|| handles::session(session)?.session.take_failure().map_or(Ok(()), Err))
}
