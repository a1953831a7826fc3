//! Floor 2: which pages a running process writes, told by the kernel (userfaultfd with asynchronous write protection).
//!
//! A [`Tracker`] belongs to one address space. It is made by one injected call and works from outside after that; when it
//! goes, or we do, the kernel lifts all protection and the target runs on as before.

pub mod forks;
mod look;
pub mod ranges;
mod scan;
mod shared;
mod tracker;

pub use look::Look;
pub use ranges::{Range, Ranges};
pub use shared::{is_shared_memory, LastShared, SharedMemory};
pub use tracker::{Last, Tracker};

use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::sys::{probe_wp, probe_wp_shared};

/// Whether this kernel can track writes, and does not lose any; tried once.
pub fn is_sound() -> Result<()> {
    static TRIED: OnceLock<Option<String>> = OnceLock::new();
    let fault = TRIED.get_or_init(|| match probe_wp::tells_the_truth() {
        Ok(true) => None,
        Ok(false) => Some("this kernel's write tracking loses pages that a program drops (a fault mended in later kernels)".to_owned()),
        Err(e) => Some(format!("this kernel cannot track writes (userfaultfd with asynchronous write protection, Linux 6.7): {e}")),
    });
    fault.as_ref().map_or(Ok(()), |fault| Err(Error::refused(fault.clone())))
}

/// Whether that holds for shared memory too; tried once.
pub fn is_sound_for_shared_memory() -> bool {
    static TRIED: OnceLock<bool> = OnceLock::new();
    *TRIED.get_or_init(|| probe_wp_shared::tells_the_truth().unwrap_or(false))
}
