//! Floor 2: which pages a running process writes, told by the kernel (userfaultfd with asynchronous write protection).
//!
//! A [`Tracker`] belongs to one address space. It is made by one injected call and works from outside after that; when it
//! goes, or we do, the kernel lifts all protection and the target runs on as before.

pub mod ranges;
mod tracker;

pub use ranges::{Range, Ranges};
pub use tracker::{Last, Tracker};
