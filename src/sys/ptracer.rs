//! Who may trace us where Yama restricts that to ancestors.

/// Lets process `pid` and its descendants trace us; 0: nobody any more. A kernel without Yama needs no such word.
pub fn allow(pid: libc::pid_t) {
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, pid as libc::c_ulong, 0, 0, 0) };
}
