//! Settings of a session as a struct that can grow: its size comes first.

use std::ffi::{c_char, c_void};
use std::time::Duration;

use stillframe::region::{Builder, FrameRef, Info, InFlight, Method, Quiesce, Resume};
use stillframe::Result;

use crate::convert::optional;
use crate::guard::usage;

/// How memory is frozen.
#[allow(non_camel_case_types)]
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum SfMethod {
    /// The best for each snapshot.
    SF_METHOD_AUTO = 0,
    /// A forked twin holds the pages.
    SF_METHOD_FORK = 1,
    /// The first write to a block copies it aside. Needs the right to use userfaultfd.
    SF_METHOD_WRITE_PROTECT = 2,
    /// What is stored is copied before sf_snapshot returns.
    SF_METHOD_COPY = 3,
}

/// What becomes of a snapshot asked for while one is in flight.
#[allow(non_camel_case_types)]
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum SfInFlight {
    /// SF_ERR_BUSY.
    SF_IN_FLIGHT_REFUSE = 0,
    /// None is taken; the ticket says so (info.skipped).
    SF_IN_FLIGHT_SKIP = 1,
    /// It is frozen at once and stored after the other, for at most `queue` that wait.
    SF_IN_FLIGHT_QUEUE = 2,
}

/// What a session goes on from.
#[allow(non_camel_case_types)]
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum SfResume {
    /// The newest intact snapshot, if there is one.
    SF_RESUME_NEWEST = 0,
    /// None.
    SF_RESUME_FRESH = 1,
    /// Snapshot number `version`.
    SF_RESUME_VERSION = 2,
}

/// Who keeps other threads from writing while memory is split off.
#[allow(non_camel_case_types)]
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum SfQuiesce {
    /// The program.
    SF_QUIESCE_SAFE_POINT = 0,
    /// A real-time signal stops every other thread for the instant.
    SF_QUIESCE_SIGNAL = 1,
}

/// How a session is to be. Start from SF_OPTIONS_INIT, which sets `size`; zero stands for what is usual.
///
/// Strings are copied by sf_open.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SfOptions {
    /// sizeof(struct sf_options).
    pub size: usize,
    /// Directory of the store; NULL: $STILLFRAME_STORE, else /var/lib/stillframe for root, else the XDG state directory.
    pub store: *const c_char,
    /// enum sf_method.
    pub method: i32,
    /// enum sf_in_flight.
    pub in_flight: i32,
    /// How many snapshots may wait with SF_IN_FLIGHT_QUEUE.
    pub queue: u32,
    /// enum sf_resume.
    pub resume: i32,
    /// The snapshot of SF_RESUME_VERSION.
    pub version: u64,
    /// enum sf_quiesce.
    pub quiesce: i32,
    /// Not 0: regions lie where they lay before, so that pointers inside them hold.
    pub same_addresses: i32,
    /// Not 0: every snapshot is read back when it is stored.
    pub verify: i32,
    /// How many snapshots stay in the store; 0: all.
    pub keep: u32,
    /// Seconds between snapshots, for sf_due; 0: only when asked for from outside.
    pub every: f64,
    /// Seconds until sf_should_exit says yes; 0: never.
    pub time_limit: f64,
    /// Most bytes of copies set aside; 0: 256 MiB.
    pub memory_limit: u64,
    /// Bytes that SF_METHOD_WRITE_PROTECT copies at the first write: 65536, 131072 or 262144; 0: 131072.
    pub block_size: u64,
    /// How many snapshots in a row hold only what changed, plus 1; 0: what is usual, 1: none.
    pub increments: u32,
    /// "none", "auto", "zstd" or "zstd:LEVEL"; NULL: "auto".
    pub compression: *const c_char,
    /// Signals after which sf_should_exit says yes, instead of what they do else: names out of TERM, INT, HUP, USR1, USR2 and XCPU,
    /// separated by commas. The program must have no handlers of its own for them. They do again what they did before when the
    /// session is closed. NULL: none.
    pub exit_on: *const c_char,
    /// Signals, in the same way, each of which makes a snapshot due (sf_due). NULL: none.
    pub snapshot_on: *const c_char,
    /// With SF_RESUME_VERSION: the name that the snapshot has in the store; NULL: that of the session. Any number of programs can
    /// start from one snapshot, each with a name of its own.
    pub origin: *const c_char,
}

/// Functions of the program. Start from SF_HOOKS_INIT; NULL stands for none. They must not throw, nor call back into the session.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SfHooks {
    /// sizeof(struct sf_hooks).
    pub size: usize,
    /// Handed to each of them.
    pub user: *mut c_void,
    /// Before memory is split off, on the thread that calls sf_snapshot: take locks. Anything but 0 calls the snapshot off.
    pub quiesce: Option<unsafe extern "C" fn(user: *mut c_void) -> i32>,
    /// After it, on the same thread, if quiesce returned 0 or is NULL.
    pub resume: Option<unsafe extern "C" fn(user: *mut c_void)>,
    /// In sf_open, when the session goes on from the snapshot of that number.
    pub restored: Option<unsafe extern "C" fn(user: *mut c_void, version: u64)>,
    /// On the transfer thread, whenever a snapshot reaches a level.
    pub progress: Option<unsafe extern "C" fn(user: *mut c_void, info: *const SfInfo)>,
}

/// How safe a snapshot is; each level includes those before it.
#[allow(non_camel_case_types)]
#[repr(i32)]
#[derive(Debug, Clone, Copy)]
pub enum SfLevel {
    /// The regions may be changed; the snapshot lives in memory.
    SF_FROZEN = 0,
    /// Written to a file, and no memory is held for it; not under its name yet.
    SF_LOCAL = 1,
    /// Synced to storage and listed under its number.
    SF_STORED = 2,
    /// Read back, every checksum right.
    SF_VERIFIED = 3,
}

/// What is known of a snapshot. Set `size` before it is handed in; a library that knows less fills in less.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SfInfo {
    /// sizeof(struct sf_info).
    pub size: usize,
    /// Its number; 0 before SF_STORED.
    pub version: u64,
    /// enum sf_level.
    pub level: i32,
    /// enum sf_method, never SF_METHOD_AUTO: what was picked.
    pub method: i32,
    /// Not 0: none was taken, because one was in flight.
    pub skipped: i32,
    /// How long sf_snapshot held the program up, in nanoseconds.
    pub pause_ns: u64,
    /// From there to SF_STORED, in nanoseconds; 0 before.
    pub stored_ns: u64,
    /// Bytes of regions that it covers.
    pub bytes: u64,
    /// Bytes of them that were read for it.
    pub changed_bytes: u64,
    /// Length of its file; 0 before SF_LOCAL.
    pub file_bytes: u64,
    /// Bytes copied aside so far.
    pub copied_bytes: u64,
    /// The most memory that copies took at one time.
    pub peak_copied_bytes: u64,
}

/// The number of a method's name.
fn method_number(name: &str) -> i32 {
    match name {
        "write-protect" => SfMethod::SF_METHOD_WRITE_PROTECT as i32,
        "copy" => SfMethod::SF_METHOD_COPY as i32,
        _ => SfMethod::SF_METHOD_FORK as i32,
    }
}

impl SfInfo {
    /// The facts of a ticket.
    pub fn of(info: &Info, skipped: bool) -> SfInfo {
        SfInfo {
            size: std::mem::size_of::<SfInfo>(),
            version: info.frame.as_ref().map_or(0, |frame| frame.seq()),
            level: info.level as i32,
            method: method_number(info.method),
            skipped: i32::from(skipped),
            pause_ns: info.pause_ns,
            stored_ns: info.stored_ns,
            bytes: info.bytes,
            changed_bytes: info.changed_bytes,
            file_bytes: info.file_bytes,
            copied_bytes: info.copied_bytes,
            peak_copied_bytes: info.peak_copied_bytes,
        }
    }
}

/// Reads a struct of the caller's that says its size: an older one is shorter, and the rest is zero.
///
/// # Safety
///
/// As many bytes must be readable as its first field says; all fields must be valid when they are zero.
pub unsafe fn sized<T: Copy>(given: *const T, what: &str) -> Result<T> {
    // SAFETY: the size is the first field of every such struct.
    let size = unsafe { given.cast::<usize>().read() };
    if size < std::mem::size_of::<usize>() || size > 4096 {
        return Err(usage(format!("the size of {what} is {size}; start from its INIT macro")));
    }
    // SAFETY: all fields are numbers and pointers, which may be zero; no more is copied than both sides have.
    unsafe {
        let mut full: T = std::mem::zeroed();
        std::ptr::copy_nonoverlapping(given.cast::<u8>(), (&raw mut full).cast::<u8>(), size.min(std::mem::size_of::<T>()));
        Ok(full)
    }
}

/// Writes a struct for the caller, no more of it than fits the size it says.
///
/// # Safety
///
/// As many bytes must be writable as its first field says.
pub unsafe fn give_sized(found: &SfInfo, to: *mut SfInfo) -> Result<()> {
    if to.is_null() {
        return Ok(());
    }
    // SAFETY: not NULL; the caller has set the size, and promises the rest.
    unsafe {
        let size = to.cast::<usize>().read();
        if size < std::mem::size_of::<usize>() || size > 4096 {
            return Err(usage(format!("the size of the info is {size}; set it to sizeof(struct sf_info)")));
        }
        std::ptr::copy_nonoverlapping((found as *const SfInfo).cast::<u8>(), to.cast::<u8>(), size.min(std::mem::size_of::<SfInfo>()));
        to.cast::<usize>().write(size);
    }
    Ok(())
}

fn seconds(value: f64, what: &str) -> Result<Option<Duration>> {
    match Duration::try_from_secs_f64(value) {
        Ok(Duration::ZERO) => Ok(None),
        Ok(duration) => Ok(Some(duration)),
        Err(_) => Err(usage(format!("{what} is {value}; give seconds"))),
    }
}

/// Applies options and hooks.
///
/// # Safety
///
/// Both must be NULL or structs that say their size; strings in them must be valid.
pub unsafe fn apply(mut builder: Builder, options: *const SfOptions, hooks: *const SfHooks) -> Result<Builder> {
    if !options.is_null() {
        // SAFETY: the caller promises it.
        builder = unsafe { apply_options(builder, &sized(options, "the options")?) }?;
    }
    if !hooks.is_null() {
        // SAFETY: the caller promises it.
        builder = apply_hooks(builder, unsafe { sized(hooks, "the hooks") }?);
    }
    Ok(builder)
}

/// # Safety
///
/// Strings must be NULL or valid.
unsafe fn apply_options(mut builder: Builder, given: &SfOptions) -> Result<Builder> {
    // SAFETY: the caller promises it.
    let (store, compression) = unsafe { (optional(given.store, "the store")?, optional(given.compression, "the compression")?) };
    // SAFETY: as above.
    let (exit_on, snapshot_on, origin) = unsafe { (optional(given.exit_on, "exit_on")?, optional(given.snapshot_on, "snapshot_on")?, optional(given.origin, "the origin")?) };
    builder = exit_on.into_iter().fold(builder, Builder::exit_on);
    builder = snapshot_on.into_iter().fold(builder, Builder::snapshot_on);
    if let Some(store) = store {
        builder = builder.store(store);
    }
    if let Some(compression) = compression {
        builder = builder.compression(compression.parse()?);
    }
    builder = match given.method {
        0 => builder,
        1 => builder.method(Method::Fork),
        2 => builder.method(Method::WriteProtect),
        3 => builder.method(Method::Copy),
        other => return Err(usage(format!("there is no method {other}"))),
    };
    builder = builder.in_flight(match given.in_flight {
        0 => InFlight::Refuse,
        1 => InFlight::Skip,
        2 => InFlight::Queue(given.queue as usize),
        other => return Err(usage(format!("there is no policy {other} for snapshots in flight"))),
    });
    builder = builder.resume(match given.resume {
        0 => Resume::Newest,
        1 => Resume::Fresh,
        2 => match origin {
            Some(origin) => Resume::From(FrameRef::new(origin, given.version)?),
            None => Resume::Version(given.version),
        },
        other => return Err(usage(format!("there is no way {other} to resume"))),
    });
    builder = builder.quiesce(match given.quiesce {
        0 => Quiesce::SafePoint,
        1 => Quiesce::Signal,
        other => return Err(usage(format!("there is no way {other} to quiesce"))),
    });
    builder = builder.same_addresses(given.same_addresses != 0).verify(given.verify != 0);
    let builder = if given.keep > 0 { builder.keep(given.keep as usize) } else { builder };
    let builder = if given.memory_limit > 0 { builder.memory_limit(given.memory_limit) } else { builder };
    let builder = if given.block_size > 0 { builder.block_size(given.block_size) } else { builder };
    let builder = if given.increments > 0 { builder.increments(given.increments - 1) } else { builder };
    let builder = seconds(given.every, "every")?.into_iter().fold(builder, Builder::every);
    Ok(seconds(given.time_limit, "time_limit")?.into_iter().fold(builder, Builder::time_limit))
}

/// The program's pointer, which it shares between threads at its own risk.
#[derive(Clone, Copy)]
struct User(*mut c_void);

// SAFETY: it is handed back to functions of the program, never followed here.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

impl User {
    fn get(self) -> *mut c_void {
        self.0
    }
}

fn apply_hooks(mut builder: Builder, given: SfHooks) -> Builder {
    let user = User(given.user);
    if let Some(call) = given.quiesce {
        // SAFETY: the program gave the function for this purpose.
        builder = builder.on_quiesce(move || match unsafe { call(user.get()) } {
            0 => Ok(()),
            other => Err(format!("it returned {other}")),
        });
    }
    if let Some(call) = given.resume {
        // SAFETY: as above.
        builder = builder.on_resume(move || unsafe { call(user.get()) });
    }
    if let Some(call) = given.restored {
        // SAFETY: as above.
        builder = builder.on_restored(move |snapshot| unsafe { call(user.get(), snapshot.frame().seq()) });
    }
    if let Some(call) = given.progress {
        // SAFETY: as above; the info outlives the call.
        builder = builder.on_progress(move |info| unsafe { call(user.get(), &SfInfo::of(info, false)) });
    }
    builder
}
