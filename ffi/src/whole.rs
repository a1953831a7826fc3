//! The whole process, from inside.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;

use stillframe::inside::{self, Callbacks, Options, Outcome};
use stillframe::{Error, Kind, Result};

use crate::convert::{optional, out, required};
use crate::guard::entry;
use crate::options::sized;

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

/// How far a checkpoint or a restore is; counts are bytes of memory and files.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SfProgress {
    /// sizeof(struct sf_progress) in the library; fields that it does not cover are not there.
    pub size: usize,
    /// What is done.
    pub done: u64,
    /// What there is to do, as far as is known: 0 at first, and it grows where a running process writes.
    pub total: u64,
    /// Length of the frame so far; 0 in a restore.
    pub written: u64,
    /// Seconds since the beginning.
    pub seconds: f64,
}

/// How a whole process is to be framed or brought back. Start from SF_WHOLE_INIT, which sets `size`; zero stands for what is
/// usual. Nothing of it is kept after the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SfWhole {
    /// sizeof(struct sf_whole).
    pub size: usize,
    /// Directory of the store; NULL: as in struct sf_options.
    pub store: *const c_char,
    /// Name of the frame; NULL: the name of the command.
    pub name: *const c_char,
    /// More arguments of the stillframe command, such as "--compress", "none"; ends with NULL, and may be NULL.
    pub arguments: *const *const c_char,
    /// Handed to each of the functions, which may be NULL, must not throw, and are called on the calling thread.
    pub user: *mut c_void,
    /// sf_checkpoint_self: before the freeze. Anything but 0 calls it off.
    pub before: Option<unsafe extern "C" fn(user: *mut c_void) -> i32>,
    /// sf_checkpoint_self: in the original, when the frame is safe or has failed.
    pub after: Option<unsafe extern "C" fn(user: *mut c_void)>,
    /// sf_checkpoint_self: in the second instance. Open connections, seed generators anew.
    pub restored: Option<unsafe extern "C" fn(user: *mut c_void)>,
    /// sf_checkpoint_pid and sf_restore: some twenty times a second. Anything but 0 gives it up.
    pub progress: Option<unsafe extern "C" fn(user: *mut c_void, progress: *const SfProgress) -> i32>,
}

/// What C says, checked.
struct Wanted {
    options: Options,
    callbacks: Callbacks<'static>,
}

/// # Safety
///
/// `given` must be NULL or a struct that says its size; strings in it must be NULL or valid.
unsafe fn wanted(given: *const SfWhole) -> Result<Wanted> {
    if given.is_null() {
        return Ok(Wanted { options: Options::default(), callbacks: Callbacks::default() });
    }
    // SAFETY: the caller promises it.
    let (given, mut arguments) = unsafe { (sized(given, "the options")?, Vec::new()) };
    let mut next = given.arguments;
    // SAFETY: the list ends with NULL, and the caller promises the rest.
    while let Some(argument) = unsafe { if next.is_null() { None } else { optional(*next, "an argument")? } } {
        arguments.push(argument.to_owned());
        // SAFETY: it was not the last one.
        next = unsafe { next.add(1) };
    }
    // SAFETY: the caller promises it.
    let (store, name) = unsafe { (optional(given.store, "the store")?, optional(given.name, "the name")?) };
    let options = Options { store: store.map(PathBuf::from), name: name.map(str::to_owned), arguments };
    Ok(Wanted { options, callbacks: callbacks(given) })
}

fn callbacks(given: SfWhole) -> Callbacks<'static> {
    let (user, mut callbacks) = (given.user, Callbacks::default());
    if let Some(call) = given.before {
        // SAFETY: the program gave the function for this purpose.
        callbacks.before = Some(Box::new(move || match unsafe { call(user) } {
            0 => Ok(()),
            other => Err(format!("it returned {other}")),
        }));
    }
    if let Some(call) = given.after {
        // SAFETY: as above.
        callbacks.after = Some(Box::new(move || unsafe { call(user) }));
    }
    if let Some(call) = given.restored {
        // SAFETY: as above.
        callbacks.restored = Some(Box::new(move || unsafe { call(user) }));
    }
    if let Some(call) = given.progress {
        let told = |at: &inside::Progress| SfProgress { size: std::mem::size_of::<SfProgress>(), done: at.done, total: at.total, written: at.written, seconds: at.elapsed.as_secs_f64() };
        // SAFETY: as above; the struct outlives the call.
        callbacks.progress = Some(Box::new(move |at| unsafe { call(user, &told(at)) } == 0));
    }
    callbacks
}

/// Takes a frame of the calling process and all its descendants. Returns twice, as fork does: with SF_SAVED in `*outcome` when the
/// frame is safe, and with SF_RESTORED in each second instance when it is brought back. Other threads go on meanwhile, in both.
///
/// `how` may be NULL for what is usual, and stays the caller's. Sessions may be open: what they have in flight is stored first,
/// and both instances go on with theirs; the second one's snapshots fail with SF_ERR_HELD as long as the original has the name.
///
/// It needs the stillframe command ($STILLFRAME_COMMAND, else in $PATH) and what a checkpoint needs. One thread at a time may
/// call it.
///
/// SF_ERR_CANCELLED: `before` calls it off. SF_ERR_REFUSED: the message is that of the command.
#[no_mangle]
pub unsafe extern "C" fn sf_checkpoint_self(how: *const SfWhole, outcome: *mut i32) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (mut wanted, slot) = unsafe { (wanted(how)?, out(outcome, "the place for the outcome")?) };
        *slot = match inside::checkpoint_self(&wanted.options, &mut wanted.callbacks)? {
            Outcome::Saved(_) => SfOutcome::SF_SAVED as i32,
            Outcome::Restored(_) => SfOutcome::SF_RESTORED as i32,
            _ => return Err(Error::new(Kind::Io, "an outcome that this interface does not know")),
        };
        Ok(())
    })
}

/// Takes a frame of process `pid` and all its descendants, as the command does; the number of the frame goes to `*version`,
/// which may be NULL. `how` may be NULL for what is usual, and stays the caller's. Any thread may call it.
///
/// SF_ERR_REFUSED: the message is that of the command. SF_ERR_CANCELLED: `progress` gave it up; the process runs on, and there is
/// no frame.
#[no_mangle]
pub unsafe extern "C" fn sf_checkpoint_pid(pid: i32, how: *const SfWhole, version: *mut u64) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (mut wanted, slot) = unsafe { (wanted(how)?, version.as_mut()) };
        let saved = inside::checkpoint_pid(pid, &wanted.options, &mut wanted.callbacks)?;
        if let Some(slot) = slot {
            *slot = saved.frame.rsplit('@').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        }
        Ok(())
    })
}

/// Brings `frame` (NAME, NAME@VERSION or a path) back in a session of its own; its process id goes to `*pid`, which may be NULL.
/// `how` may be NULL for what is usual, and stays the caller's. Any thread may call it.
///
/// SF_ERR_CANCELLED: `progress` gave it up, and nothing is left of the second instance. One that runs already by then stays, and
/// the call succeeds.
#[no_mangle]
pub unsafe extern "C" fn sf_restore(frame: *const c_char, how: *const SfWhole, pid: *mut i32) -> i32 {
    entry(|| {
        // SAFETY: the caller keeps the contract of the header.
        let (mut wanted, frame, slot) = unsafe { (wanted(how)?, required(frame, "the frame")?, pid.as_mut()) };
        let restored = inside::restore(frame, &wanted.options, &mut wanted.callbacks)?;
        if let Some(slot) = slot {
            *slot = restored;
        }
        Ok(())
    })
}
