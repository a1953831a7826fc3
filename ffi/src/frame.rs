//! Snapshots open for reading.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::sync::Arc;

use stillframe::region::Snapshot;
use stillframe::store::default_dir;
use stillframe::{Error, Kind};

use crate::convert::{give, optional, out, required};
use crate::guard::{entry, usage};
use crate::handles::{self, Object};

/// A snapshot open for reading. Opaque.
pub struct SfFrame {
    _private: [u8; 0],
}

/// A region of a snapshot.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SfRegion {
    /// Where it was in the program that wrote it.
    pub address: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// Opens snapshot number `version` of `name` for reading, or for 0 the newest of which every byte is intact. The program that
/// writes them may run meanwhile; what is read stays as it is.
///
/// `store` is a directory; NULL: as in struct sf_options. The handle in `*frame` is the caller's, to be closed by
/// sf_frame_close. Any thread may use it, several at once.
#[no_mangle]
pub unsafe extern "C" fn sf_frame_open(store: *const c_char, name: *const c_char, version: u64, frame: *mut *mut SfFrame) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (store, name, slot) = unsafe { (optional(store, "the store")?, required(name, "the name")?, out(frame, "the place for the frame")?) };
        *slot = std::ptr::null_mut();
        let store = store.map_or_else(default_dir, |store| Ok(PathBuf::from(store)))?;
        let snapshot = match version {
            0 => Snapshot::newest(store, name)?,
            version => Snapshot::open(store, name, version)?,
        };
        *slot = handles::add(Object::Frame(Arc::new(snapshot)));
        Ok(())
    })
}

/// Closes a snapshot. NULL is allowed. No other thread may be using it.
#[no_mangle]
pub unsafe extern "C" fn sf_frame_close(frame: *mut SfFrame) -> i32 {
    entry(|| {
        if !frame.is_null() {
            handles::frame(frame)?;
            handles::remove(frame);
        }
        Ok(())
    })
}

/// The number of a snapshot. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_frame_version(frame: *const SfFrame, version: *mut u64) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let slot = unsafe { out(version, "the place for the version") }?;
        *slot = handles::frame(frame)?.frame().seq();
        Ok(())
    })
}

/// Where a region was and how long it is. SF_ERR_NOT_FOUND: there is none of that name. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_frame_region(frame: *const SfFrame, name: *const c_char, region: *mut SfRegion) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (name, slot) = unsafe { (required(name, "the name")?, out(region, "the place for the region")?) };
        let found = handles::frame(frame)?.regions().into_iter().find(|region| region.name == name);
        let found = found.ok_or_else(|| Error::new(Kind::NotFound, format!("the frame has no region '{name}'")))?;
        *slot = SfRegion { address: found.address, len: found.bytes };
        Ok(())
    })
}

/// The name of region number `index`, counted from 0. `*len` is the room at `name` and becomes its length with the zero at its
/// end; `name` may be NULL to ask for the length alone. SF_ERR_NOT_FOUND: there are not so many. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_frame_region_name(frame: *const SfFrame, index: usize, name: *mut c_char, len: *mut usize) -> i32 {
    entry(|| {
        let regions = handles::frame(frame)?.regions();
        let region = regions.get(index).ok_or_else(|| Error::new(Kind::NotFound, format!("the frame has {} regions, no number {index}", regions.len())))?;
        // SAFETY: the caller keeps the contract of the header.
        unsafe { give(format!("{}\0", region.name).as_bytes(), name.cast(), len) }
    })
}

/// Copies `len` bytes of a region from `offset` on to `bytes`; what was left out of the snapshot is zero. Every byte is checked
/// against its checksum. Any thread may call it, several at once.
#[no_mangle]
pub unsafe extern "C" fn sf_frame_read(frame: *const SfFrame, name: *const c_char, offset: u64, bytes: *mut c_void, len: usize) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let name = unsafe { required(name, "the name") }?;
        let snapshot = handles::frame(frame)?;
        if len == 0 {
            return Ok(());
        }
        if bytes.is_null() {
            return Err(usage("the place for the bytes is NULL"));
        }
        // SAFETY: not NULL; the caller keeps the contract of the header.
        let room = unsafe { std::slice::from_raw_parts_mut(bytes.cast::<u8>(), len) };
        snapshot.read_at(name, offset, room)
    })
}

/// The state of a snapshot. `*len` is the room at `state` and becomes its length, 0 if there is none; `state` may be NULL to ask
/// for the length alone. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_frame_state(frame: *const SfFrame, state: *mut c_void, len: *mut usize) -> i32 {
    entry(|| {
        let found = handles::frame(frame)?.state_bytes()?;
        // SAFETY: the caller keeps the contract of the header.
        unsafe { give(&found, state.cast(), len) }
    })
}

/// A label of a snapshot. `*len` is the room at `value` and becomes its length with the zero at its end; `value` may be NULL to
/// ask for the length alone. SF_ERR_NOT_FOUND: there is no such label. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_frame_label(frame: *const SfFrame, key: *const c_char, value: *mut c_char, len: *mut usize) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let key = unsafe { required(key, "the label") }?;
        let snapshot = handles::frame(frame)?;
        let found = snapshot.labels().get(key).ok_or_else(|| Error::new(Kind::NotFound, format!("the frame has no label '{key}'")))?;
        // SAFETY: as above.
        unsafe { give(format!("{found}\0").as_bytes(), value.cast(), len) }
    })
}
