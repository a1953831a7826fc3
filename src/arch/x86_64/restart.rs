//! Which call a thread is in that was interrupted more than once: it then stands in `restart_syscall`, and the kernel, which
//! remembers the call, tells nobody. A second instance must make the call itself.

use super::{interrupted, Interrupted, Registers, SYSCALL_LEN};

/// All calls that the kernel continues by `restart_syscall`.
const CONTINUED: [i64; 4] = [libc::SYS_poll, libc::SYS_nanosleep, libc::SYS_futex, libc::SYS_clock_nanosleep];

/// How many bytes of code before the `syscall` instruction help to tell.
pub const CODE_LEN: usize = 24;

/// Where that code begins, if the thread is in `restart_syscall`.
pub fn code_to_read(regs: &Registers) -> Option<u64> {
    let inside = interrupted(regs) == Interrupted::WithRemainingTime && regs.orig_rax as i64 == libc::SYS_restart_syscall;
    inside.then(|| regs.rip.wrapping_sub(SYSCALL_LEN + CODE_LEN as u64))
}

/// Whether a thread is still in the call that it was in: same place, same stack, same arguments.
pub fn is_same_call(before: &Registers, now: &Registers) -> bool {
    let place = |regs: &Registers| [regs.rip, regs.rsp, regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    place(before) == place(now)
}

/// The registers as if the call had been interrupted only once; unchanged where nobody can tell which call it is.
pub fn unveiled(regs: &Registers, code: &[u8]) -> Registers {
    let call = loaded(code).or_else(|| shaped(regs));
    Registers { orig_rax: call.map_or(regs.orig_rax, |call| call as u64), ..*regs }
}

/// The call number that the nearest `mov eax, imm32` loads.
fn loaded(code: &[u8]) -> Option<i64> {
    const MOV_EAX: u8 = 0xb8;
    let number = |window: &[u8]| window[1..].first_chunk().map(|raw| i64::from(i32::from_le_bytes(*raw)));
    code.windows(5).rev().filter(|window| window[0] == MOV_EAX).find_map(|window| number(window).filter(|call| CONTINUED.contains(call)))
}

/// The only call that the arguments, which are still in place, make sense for.
fn shaped(regs: &Registers) -> Option<i64> {
    const LOWEST_POINTER: u64 = 1 << 16;
    const FUTEX_PRIVATE: u64 = 0x80;
    let pointer = |value: u64| value >= LOWEST_POINTER;
    match regs {
        // (clock, relative, time, remaining)
        Registers { rdi, rsi: 0, rdx, .. } if !pointer(*rdi) && pointer(*rdx) => Some(libc::SYS_clock_nanosleep),
        // (time, remaining)
        Registers { rsi, .. } if pointer(*rsi) => Some(libc::SYS_nanosleep),
        // (word, operation, value, timeout)
        Registers { rdi, rsi, r10, .. } if rsi & FUTEX_PRIVATE != 0 && pointer(*rdi) && pointer(*r10) => Some(libc::SYS_futex),
        // (descriptors, how many, milliseconds)
        Registers { rdi, rsi, rdx, .. } if (*rsi > 0 || *rdi == 0) && *rdx as i32 > 0 => Some(libc::SYS_poll),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(rdi: u64, rsi: u64, rdx: u64, r10: u64) -> Registers {
        let mut words = [0; super::super::REGISTERS];
        words[15] = libc::SYS_restart_syscall as u64;
        let mut regs = super::super::from_words(&words);
        (regs.rdi, regs.rsi, regs.rdx, regs.r10) = (rdi, rsi, rdx, r10);
        regs.orig_rax = libc::SYS_restart_syscall as u64;
        regs
    }

    #[test]
    fn code_tells_the_call() {
        let mut code = vec![0x90; CODE_LEN];
        code[10..15].copy_from_slice(&[0xb8, 0xca, 0, 0, 0]);
        assert_eq!(unveiled(&regs(1, 2, 3, 4), &code).orig_rax, libc::SYS_futex as u64);
        // A constant that is no call number, nearer than one that is.
        code[17..22].copy_from_slice(&[0xb8, 0x0c, 0x10, 0, 0]);
        assert_eq!(unveiled(&regs(1, 2, 3, 4), &code).orig_rax, libc::SYS_futex as u64);
    }

    #[test]
    fn arguments_tell_the_call() {
        const P: u64 = 0x7fff_0000_1000;
        let call = |rdi, rsi, rdx, r10| unveiled(&regs(rdi, rsi, rdx, r10), &[0x90; CODE_LEN]).orig_rax as i64;
        assert_eq!(call(1, 0, P, 0), libc::SYS_clock_nanosleep);
        assert_eq!(call(P, P, 7, 0), libc::SYS_nanosleep);
        assert_eq!(call(P, 0x80, 1, P), libc::SYS_futex);
        assert_eq!(call(P, 3, 2000, 0), libc::SYS_poll);
        assert_eq!(call(0, 0, 2000, 0), libc::SYS_poll);
        // A sleep that wants no remaining time, or a shared futex: nobody can tell.
        assert_eq!(call(P, 0, P, P), libc::SYS_restart_syscall);
    }
}
