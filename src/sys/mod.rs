//! Floor 0: kernel interfaces that the standard crates lack, each wrapped once. With `arch/` the crate's only unsafe code.
#![allow(unsafe_code)]

pub mod children;
pub mod clone;
pub mod direct;
pub mod fd;
pub mod fd_extra;
pub mod kcmp;
pub mod mapping;
pub mod memory;
pub mod mirror;
pub mod pagemap;
pub mod pidfd;
pub mod probe;
pub mod probe_wp;
pub mod probe_wp_shared;
pub mod proc_events;
pub mod process_vm;
pub mod ptrace;
pub mod ptracer;
pub mod quiesce;
pub mod sched;
pub mod shm;
pub mod tally;
pub mod twin;
pub mod uffd;

/// The size of a page on the machines we run on.
pub const PAGE: u64 = 4096;

/// Turns the −1 of a libc call into the error it stands for.
fn check(ret: libc::c_long) -> std::io::Result<libc::c_long> {
    if ret < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}
