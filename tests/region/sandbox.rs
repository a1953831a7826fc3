//! A sandbox that allows threads and no processes, as a kernel does that has no memory left to promise.

const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
/// Where a filter finds the number of the call, and its first argument.
const NUMBER: u32 = 0;
const FIRST_ARGUMENT: u32 = 16;

fn step(code: u16, yes: u8, no: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: yes, jf: no, k }
}

/// From now on every fork of this process fails: clone3 as if the kernel did not know it, clone without shared memory by ENOMEM.
pub fn without_fork() {
    let fail = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
    let filter = [
        step(LOAD, 0, 0, NUMBER),
        step(EQUAL, 0, 1, libc::SYS_clone3 as u32),
        step(RETURN, 0, 0, fail(libc::ENOSYS)),
        step(EQUAL, 0, 3, libc::SYS_clone as u32),
        step(LOAD, 0, 0, FIRST_ARGUMENT),
        step(ANY_BIT, 1, 0, libc::CLONE_VM as u32),
        step(RETURN, 0, 0, fail(libc::ENOMEM)),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    nix::sys::prctl::set_no_new_privs().unwrap();
    // SAFETY: the program outlives the call, which copies it. All threads that there are get it.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC, &program) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
