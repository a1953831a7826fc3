//! The whole process, from inside.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;

use stillframe::inside::{self, Callbacks, Options, Outcome};
use stillframe::{Error, Kind, Result};

use crate::convert::{optional, out, required};
use crate::guard::entry;

/// Who returns from sf_checkpoint_self.
#[allow(non_camel_case_types)]
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum SfOutcome {
    /// The original, whose frame is safe.
    SF_SAVED = 1,
    /// The second instance, brought back from the frame.
    SF_RESTORED = 2,
}

/// Called now and then with the seconds it has taken so far; anything but 0 gives it up.
pub type SfProgress = Option<unsafe extern "C" fn(user: *mut c_void, seconds: f64) -> i32>;

/// # Safety
///
/// Strings must be NULL or valid.
unsafe fn options(store: *const c_char, name: *const c_char) -> Result<Options> {
    // SAFETY: the caller promises it.
    let (store, name) = unsafe { (optional(store, "the store")?, optional(name, "the name")?) };
    Ok(Options { store: store.map(PathBuf::from), name: name.map(str::to_owned), ..Options::default() })
}

fn callbacks<'a>(progress: SfProgress, user: *mut c_void) -> Callbacks<'a> {
    let mut callbacks = Callbacks::default();
    if let Some(call) = progress {
        // SAFETY: the program gave the function for this purpose.
        callbacks.progress = Some(Box::new(move |time| unsafe { call(user, time.as_secs_f64()) } == 0));
    }
    callbacks
}

/// Takes a frame of the calling process and all its descendants, named `name`, in `store` (either may be NULL for what is usual).
/// Returns twice, as fork does: with SF_SAVED in `*outcome` when the frame is safe, and with SF_RESTORED in each second instance
/// when it is brought back. Other threads go on meanwhile, in both.
///
/// It needs the stillframe command ($STILLFRAME_COMMAND, else in $PATH) and what a checkpoint needs. One thread at a time.
#[no_mangle]
pub unsafe extern "C" fn sf_checkpoint_self(store: *const c_char, name: *const c_char, outcome: *mut i32) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (options, slot) = unsafe { (options(store, name)?, out(outcome, "the place for the outcome")?) };
        *slot = match inside::checkpoint_self(&options, &mut Callbacks::default())? {
            Outcome::Saved(_) => SfOutcome::SF_SAVED as i32,
            Outcome::Restored(_) => SfOutcome::SF_RESTORED as i32,
            _ => return Err(Error::new(Kind::Io, "an outcome that this interface does not know")),
        };
        Ok(())
    })
}

/// Takes a frame of process `pid` and all its descendants, as the command does; the number of the frame goes to `*version`,
/// which may be NULL. `progress` may be NULL; it is called on this thread, with `user`. Any thread may call it.
///
/// SF_ERR_REFUSED: the message is that of the command. SF_ERR_CANCELLED: `progress` gave it up, and the process runs on.
#[no_mangle]
pub unsafe extern "C" fn sf_checkpoint_pid(pid: i32, store: *const c_char, name: *const c_char, progress: SfProgress, user: *mut c_void, version: *mut u64) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (options, slot) = unsafe { (options(store, name)?, version.as_mut()) };
        let saved = inside::checkpoint_pid(pid, &options, &mut callbacks(progress, user))?;
        if let Some(slot) = slot {
            *slot = saved.frame.rsplit('@').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        }
        Ok(())
    })
}

/// Brings `frame` (NAME, NAME@VERSION or a path) back in a session of its own; its process id goes to `*pid`, which may be NULL.
/// `progress` as for sf_checkpoint_pid; given up, nothing is left of the second instance. Any thread may call it.
#[no_mangle]
pub unsafe extern "C" fn sf_restore(store: *const c_char, frame: *const c_char, progress: SfProgress, user: *mut c_void, pid: *mut i32) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (options, frame, slot) = unsafe { (options(store, std::ptr::null())?, required(frame, "the frame")?, pid.as_mut()) };
        let restored = inside::restore(frame, &options, &mut callbacks(progress, user))?;
        if let Some(slot) = slot {
            *slot = restored;
        }
        Ok(())
    })
}
