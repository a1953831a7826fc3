//! Code that a target's thread runs for us and that carries the way home in itself.
//!
//! A stub makes its system calls, puts back the signal mask and every general register from constants inside it, and jumps to
//! where the thread was. System calls leave the vector registers alone. So a thread whose tracer dies at any instant simply
//! runs on: through the stub, and home. It uses no stack but for one `popf` whose `rsp` points into the stub.

use std::mem::{offset_of, size_of};

use super::{home, Registers};

/// Bytes to be written at the address they were made for.
pub struct Stub {
    /// The code and its constants.
    pub bytes: Vec<u8>,
    /// Address of the `syscall` instruction, or of the first instruction of a twin program.
    pub entry: u64,
    /// Address from which the thread goes home at once.
    pub tail: u64,
}

/// Whose child a twin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kin {
    /// Of whoever inherits the target's orphans.
    Orphan,
    /// The same, for a target that would inherit them itself: it does not while the twin is born.
    OrphanOfSubreaper,
    /// The target's own, where some other process of its tree would inherit it.
    Child,
}

/// The most bytes any stub takes.
pub const MAX_LEN: usize = 512;

/// The most bytes that the stub of `call` takes.
pub const CALL_LEN: usize = 256;

const PR_GET_TID_ADDRESS: i32 = 40;

struct Asm(Vec<u8>);

impl Asm {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn imm32(&mut self, opcode: &[u8], value: u32) -> &mut Self {
        self.put(opcode).put(&value.to_le_bytes())
    }

    fn imm64(&mut self, opcode: &[u8], value: u64) -> &mut Self {
        self.put(opcode).put(&value.to_le_bytes())
    }

    fn mov_eax(&mut self, value: i64) -> &mut Self {
        self.imm32(&[0xb8], value as u32)
    }

    fn mov_edi(&mut self, value: u32) -> &mut Self {
        self.imm32(&[0xbf], value)
    }

    fn mov_esi(&mut self, value: u32) -> &mut Self {
        self.imm32(&[0xbe], value)
    }

    fn clear_edx_r10_r8(&mut self) -> &mut Self {
        self.put(&[0x31, 0xd2, 0x45, 0x31, 0xd2, 0x45, 0x31, 0xc0])
    }

    fn syscall(&mut self) -> &mut Self {
        self.put(&[0x0f, 0x05])
    }

    /// `test eax, eax`, then jump if not zero to a place patched in later; returns where to patch.
    fn jump_if_nonzero(&mut self) -> usize {
        self.put(&[0x85, 0xc0]).imm32(&[0x0f, 0x85], 0);
        self.0.len() - 4
    }

    /// The same for a negative value.
    fn jump_if_negative(&mut self) -> usize {
        self.put(&[0x85, 0xc0]).imm32(&[0x0f, 0x88], 0);
        self.0.len() - 4
    }

    fn land(&mut self, patch: usize) {
        let distance = (self.0.len() - patch - 4) as u32;
        self.0[patch..patch + 4].copy_from_slice(&distance.to_le_bytes());
    }

    fn exit_group(&mut self) -> &mut Self {
        self.mov_edi(0).mov_eax(libc::SYS_exit_group).syscall()
    }
}

/// Constants first: signal mask, flags, address of home.
fn start(regs: &Registers, mask: u64) -> Asm {
    let mut asm = Asm(Vec::with_capacity(MAX_LEN));
    asm.put(&mask.to_le_bytes()).put(&regs.eflags.to_le_bytes()).put(&regs.rip.to_le_bytes());
    asm
}

/// Signal mask, registers, jump.
fn go_home(asm: &mut Asm, base: u64, regs: &Registers) {
    asm.mov_eax(libc::SYS_rt_sigprocmask).mov_edi(libc::SIG_SETMASK as u32);
    asm.imm64(&[0x48, 0xbe], base).put(&[0x31, 0xd2]).imm32(&[0x41, 0xba], 8).syscall();
    asm.imm64(&[0x48, 0xbc], base + 8).put(&[0x9d]);
    let registers: [(&[u8], u64); 16] = [
        (&[0x48, 0xbc], regs.rsp), (&[0x48, 0xb8], regs.rax), (&[0x48, 0xb9], regs.rcx), (&[0x48, 0xba], regs.rdx),
        (&[0x48, 0xbb], regs.rbx), (&[0x48, 0xbd], regs.rbp), (&[0x48, 0xbe], regs.rsi), (&[0x48, 0xbf], regs.rdi),
        (&[0x49, 0xb8], regs.r8), (&[0x49, 0xb9], regs.r9), (&[0x49, 0xba], regs.r10), (&[0x49, 0xbb], regs.r11),
        (&[0x49, 0xbc], regs.r12), (&[0x49, 0xbd], regs.r13), (&[0x49, 0xbe], regs.r14), (&[0x49, 0xbf], regs.r15),
    ];
    for (opcode, value) in registers {
        asm.imm64(opcode, value);
    }
    // jmp [rip + distance] to the address among the constants.
    let behind = asm.0.len() as u32 + 6;
    asm.imm32(&[0xff, 0x25], 16u32.wrapping_sub(behind));
}

/// One system call whose registers the tracer sets, then home. `stopped` are the registers at the stop.
pub fn call(base: u64, stopped: &Registers, mask: u64) -> Stub {
    let regs = home(stopped);
    let mut asm = start(&regs, mask);
    let entry = base + asm.0.len() as u64;
    asm.syscall();
    let tail = base + asm.0.len() as u64;
    go_home(&mut asm, base, &regs);
    Stub { bytes: asm.0, entry, tail }
}

/// What a thread tells of itself by the stub that `questions` makes, as it lies in memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// Address, flags and size of the alternate stack.
    pub alternate_stack: [u64; 3],
    /// What PR_GET_TID_ADDRESS gives.
    pub tid_address: u64,
    /// What PR_GET_PDEATHSIG gives.
    pub parent_death_signal: u64,
    /// PR_GET_TIMERSLACK.
    pub timer_slack: u64,
    /// PR_GET_SECUREBITS.
    pub securebits: u64,
    /// What the calls returned that answer into memory.
    pub returned: [u64; 2],
}

/// How many bytes the answers take.
pub const ANSWERS_LEN: usize = size_of::<Answers>();

/// How many system calls a thread makes to answer, but for those that stop it.
pub const QUESTIONS: usize = 5;

impl Answers {
    /// Answers from memory: words in the order of the fields.
    pub fn of(bytes: &[u8; ANSWERS_LEN]) -> Answers {
        let mut words = bytes.chunks_exact(8).map(|word| word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word)));
        let mut next = || words.next().unwrap_or(0);
        Answers {
            alternate_stack: [next(), next() & 0xffff_ffff, next()],
            tid_address: next(),
            parent_death_signal: next() & 0xffff_ffff,
            timer_slack: next(),
            securebits: next(),
            returned: [next(), next()],
        }
    }
}

/// Asks the kernel, for the thread that runs it, what only a thread itself may ask; the answers go to `out`, which the process may
/// write. With a `signal`, the thread then sends it to itself, so that its tracer sees it stop. Then home.
pub fn questions(base: u64, stopped: &Registers, mask: u64, out: u64, signal: Option<i32>) -> Stub {
    // (prctl option, where in the answers its second argument points, where its result goes)
    const PRCTLS: [(i32, Option<usize>, usize); QUESTIONS - 1] = [
        (PR_GET_TID_ADDRESS, Some(offset_of!(Answers, tid_address)), offset_of!(Answers, returned)),
        (libc::PR_GET_PDEATHSIG, Some(offset_of!(Answers, parent_death_signal)), offset_of!(Answers, returned) + 8),
        (libc::PR_GET_TIMERSLACK, None, offset_of!(Answers, timer_slack)),
        (libc::PR_GET_SECUREBITS, None, offset_of!(Answers, securebits)),
    ];
    let regs = home(stopped);
    let mut asm = start(&regs, mask);
    let entry = base + asm.0.len() as u64;
    asm.imm64(&[0x48, 0xbb], out);
    for (option, into, result) in PRCTLS {
        // lea rsi, [rbx + into] … mov [rbx + result], rax
        asm.mov_edi(option as u32).put(&[0x48, 0x8d, 0x73, into.unwrap_or(0) as u8]).mov_eax(libc::SYS_prctl).syscall();
        asm.put(&[0x48, 0x89, 0x43, result as u8]);
    }
    // mov rsi, rbx
    asm.mov_edi(0).put(&[0x48, 0x89, 0xde]).mov_eax(libc::SYS_sigaltstack).syscall();
    if let Some(signal) = signal {
        send_self(&mut asm, signal);
    }
    let tail = base + asm.0.len() as u64;
    go_home(&mut asm, base, &regs);
    Stub { bytes: asm.0, entry, tail }
}

/// tgkill(getpid(), gettid(), signal).
fn send_self(asm: &mut Asm, signal: i32) {
    // mov r12d, eax; mov esi, eax; mov edi, r12d
    asm.mov_eax(libc::SYS_getpid).syscall().put(&[0x41, 0x89, 0xc4]);
    asm.mov_eax(libc::SYS_gettid).syscall().put(&[0x89, 0xc6, 0x44, 0x89, 0xe7]);
    asm.imm32(&[0xba], signal as u32).mov_eax(libc::SYS_tgkill).syscall();
}

/// Makes a userfaultfd, closes it again, then home. A tracer takes a duplicate in between; should it die there, the descriptor is
/// closed all the same.
pub fn watch(base: u64, stopped: &Registers, mask: u64, flags: u32) -> Stub {
    let regs = home(stopped);
    let mut asm = start(&regs, mask);
    let entry = base + asm.0.len() as u64;
    asm.mov_edi(flags).mov_eax(libc::SYS_userfaultfd).syscall();
    // mov edi, eax: where there is no descriptor, there is none to close.
    asm.put(&[0x89, 0xc7]).mov_eax(libc::SYS_close).syscall();
    let tail = base + asm.0.len() as u64;
    go_home(&mut asm, base, &regs);
    Stub { bytes: asm.0, entry, tail }
}

/// Forks the twin, then home.
///
/// The twin is born of a middle process that shares the target's memory, so that it is nobody's child once the middle is gone;
/// as `Kin::Child` it is the target's own child. The twin's own code drops its
/// copy of the descriptors, so that it keeps no pipe or socket open, and exits: what a twin that nobody traces does at once.
pub fn twin(base: u64, stopped: &Registers, mask: u64, kin: Kin) -> Stub {
    let direct = kin == Kin::Child;
    let regs = home(stopped);
    let mut asm = start(&regs, mask);
    let entry = base + asm.0.len() as u64;
    if kin == Kin::OrphanOfSubreaper {
        adopt_orphans(&mut asm, false);
    }
    let mut to_middle_end = None;
    let shared = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_SIGHAND;
    let to_tail = clone(&mut asm, if direct { 0 } else { shared as u32 });
    if !direct {
        to_middle_end = Some(clone(&mut asm, 0));
    }
    asm.mov_edi(0).mov_esi(u32::MAX).clear_edx_r10_r8().mov_eax(libc::SYS_close_range).syscall();
    if let Some(patch) = to_middle_end {
        asm.land(patch);
    }
    asm.exit_group();
    asm.land(to_tail);
    wait_for_kin(&mut asm);
    if kin == Kin::OrphanOfSubreaper {
        adopt_orphans(&mut asm, true);
    }
    let tail = base + asm.0.len() as u64;
    go_home(&mut asm, base, &regs);
    Stub { bytes: asm.0, entry, tail }
}

/// Waits for the child just made, if any: the middle process; or a twin whose tracer died, which killed it.
fn wait_for_kin(asm: &mut Asm) {
    let no_child = asm.jump_if_negative();
    // mov edi, eax
    asm.put(&[0x89, 0xc7]).mov_esi(0).clear_edx_r10_r8().imm32(&[0xba], libc::__WALL as u32).mov_eax(libc::SYS_wait4).syscall();
    asm.land(no_child);
}

fn adopt_orphans(asm: &mut Asm, adopt: bool) {
    asm.mov_edi(libc::PR_SET_CHILD_SUBREAPER as u32).mov_esi(adopt.into()).clear_edx_r10_r8().mov_eax(libc::SYS_prctl).syscall();
}

/// clone without exit signal; the new task falls through, the caller jumps to where the returned patch lands.
fn clone(asm: &mut Asm, flags: u32) -> usize {
    asm.mov_edi(flags).mov_esi(0).clear_edx_r10_r8().mov_eax(libc::SYS_clone).syscall();
    asm.jump_if_nonzero()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_their_order() {
        let bytes: Vec<u8> = (1..=(ANSWERS_LEN / 8) as u64).flat_map(u64::to_le_bytes).collect();
        let answers = Answers::of(bytes[..].try_into().unwrap());
        assert_eq!((answers.alternate_stack, answers.tid_address, answers.securebits, answers.returned), ([1, 2, 3], 4, 7, [8, 9]));
        assert_eq!((answers.parent_death_signal, answers.timer_slack), (5, 6));
    }

    fn registers() -> Registers {
        let mut regs: Registers = crate::sys::ptrace::zero_regs();
        (regs.rip, regs.rsp, regs.rax, regs.orig_rax, regs.eflags) = (0x1111, 0x2222, 7, -1i64 as u64, 0x246);
        regs
    }


    #[test]
    fn stubs_fit_and_their_jump_reads_the_home_address() {
        for stub in [Kin::Orphan, Kin::OrphanOfSubreaper, Kin::Child].map(|kin| twin(0x1000, &registers(), 5, kin)).into_iter().chain([call(0x1000, &registers(), 5), questions(0x1000, &registers(), 5, 0x5000, Some(23))]) {
            assert!(stub.bytes.len() <= MAX_LEN, "{}", stub.bytes.len());
            let n = stub.bytes.len();
            let distance = i32::from_le_bytes(stub.bytes[n - 4..].try_into().unwrap());
            assert_eq!(n as i64 + i64::from(distance), 16);
            assert_eq!(stub.bytes[16..24], 0x1111u64.to_le_bytes());
        }
        assert!(call(0x1000, &registers(), 5).bytes.len() <= CALL_LEN);
    }

    #[test]
    fn an_interrupted_call_is_made_again() {
        let mut regs = registers();
        (regs.orig_rax, regs.rax) = (35, -514i64 as u64);
        let home = home(&regs);
        assert_eq!((home.rax, home.rip), (35, 0x1111 - 2));
        regs.rax = -516i64 as u64;
        assert_eq!(super::home(&regs).rax, libc::SYS_restart_syscall as u64);
    }
}
