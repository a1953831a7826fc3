//! x86-64: registers, restarts of interrupted system calls, and the code that is put into a target.

pub mod cpu;
pub mod restart;
pub mod stub;
pub mod vdso;
pub mod xstate;

use libc::user_regs_struct;

/// The general registers of a thread.
pub type Registers = user_regs_struct;

/// How many general registers the kernel shows.
pub const REGISTERS: usize = 27;

macro_rules! words {
    ($($name:ident)*) => {
        /// The registers as numbers, in the order of `user_regs_struct`.
        pub fn to_words(regs: &Registers) -> [u64; REGISTERS] {
            [$(regs.$name),*]
        }

        /// The registers from numbers.
        pub fn from_words(words: &[u64; REGISTERS]) -> Registers {
            let [$($name),*] = *words;
            Registers { $($name),* }
        }
    };
}
words!(r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs);

/// The length of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// How a thread that was stopped inside a system call goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupted {
    /// It was not inside a restartable call.
    No,
    /// The call starts again with the arguments it had.
    Again,
    /// The kernel keeps the remaining time; `restart_syscall` goes on with it while the thread lives.
    WithRemainingTime,
}

/// Which system call the stopped thread was in, if any, and how it goes on.
pub fn interrupted(regs: &Registers) -> Interrupted {
    if (regs.orig_rax as i64) < 0 {
        return Interrupted::No;
    }
    match regs.rax as i64 {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Interrupted::Again,
        ERESTART_RESTARTBLOCK => Interrupted::WithRemainingTime,
        _ => Interrupted::No,
    }
}

/// Calls that return EINTR when a stop interrupts them, although no handler ran (signal(7)); made again they do no harm.
const NEVER_RESTARTED: &[i64] = &[
    libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_semop, libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait, libc::SYS_io_getevents, libc::SYS_read, libc::SYS_write, libc::SYS_recvfrom, libc::SYS_recvmsg,
    libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_accept, libc::SYS_accept4,
];

/// Makes our own stop invisible to a call that it interrupted: the kernel then starts the call again, unless a handler runs first.
/// True if `regs` changed.
pub fn hide_interruption(regs: &mut Registers) -> bool {
    let ours = regs.rax as i64 == -i64::from(libc::EINTR) && NEVER_RESTARTED.contains(&(regs.orig_rax as i64));
    if ours {
        regs.rax = ERESTARTNOHAND as u64;
    }
    ours
}

/// The registers with which a second instance starts. The kernel itself makes an interrupted call again, or returns EINTR if a
/// handler runs first. What remained of a sleep is in its `remaining` argument if it has one, else the call waits its full time anew.
pub fn restored(regs: &Registers) -> Registers {
    let mut regs = *regs;
    if interrupted(&regs) == Interrupted::WithRemainingTime {
        match regs.orig_rax as i64 {
            libc::SYS_nanosleep if regs.rsi != 0 => regs.rdi = regs.rsi,
            libc::SYS_clock_nanosleep if regs.r10 != 0 => regs.rdx = regs.r10,
            _ => {}
        }
        regs.rax = ERESTARTNOHAND as u64;
    }
    regs
}

/// The registers with which a living thread runs on by itself, without the kernel's help at a restart.
pub fn home(regs: &Registers) -> Registers {
    let mut home = *regs;
    match interrupted(regs) {
        Interrupted::No => return home,
        Interrupted::Again => home.rax = regs.orig_rax,
        Interrupted::WithRemainingTime => home.rax = libc::SYS_restart_syscall as u64,
    }
    home.rip = regs.rip - SYSCALL_LEN;
    home.orig_rax = -1i64 as u64;
    home
}

/// Whether the thread runs 32-bit code.
pub fn is_32bit(regs: &Registers) -> bool {
    regs.cs != 0x33
}

/// Sets up `regs` for a system call whose `syscall` instruction is at `site`.
pub fn load_call(regs: &mut Registers, site: u64, number: i64, args: &[u64; 6]) {
    regs.rip = site;
    regs.rax = number as u64;
    regs.orig_rax = -1i64 as u64;
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = *args;
}

/// The result that a system call left in `regs`.
pub fn call_result(regs: &Registers) -> std::io::Result<u64> {
    match regs.rax as i64 {
        errno @ -4095..=-1 => Err(std::io::Error::from_raw_os_error(-errno as i32)),
        _ => Ok(regs.rax),
    }
}
