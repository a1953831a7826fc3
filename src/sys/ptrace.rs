//! ptrace(2) requests. Every function acts on a thread that the calling thread traces.

use std::io;
use std::mem::{size_of, MaybeUninit};

use libc::{c_void, iovec, pid_t, siginfo_t, user_regs_struct};

use super::check;

/// Follow `clone`, `fork` and `vfork`: the new task is traced from birth.
pub const FOLLOW_CLONES: i32 = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
/// The tracee dies with its tracer.
pub const EXIT_KILL: i32 = libc::PTRACE_O_EXITKILL;
/// Distinguish system call stops from SIGTRAP.
pub const SYSGOOD: i32 = libc::PTRACE_O_TRACESYSGOOD;
/// Seccomp filters do not run while this is set (needs CAP_SYS_ADMIN).
pub const SUSPEND_SECCOMP: i32 = 1 << 21;

const NT_X86_XSTATE: libc::c_int = 0x202;
const PEEKSIGINFO_SHARED: u32 = 1;
const GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const SECCOMP_GET_METADATA: libc::c_uint = 0x420d;

fn request(req: libc::c_uint, tid: pid_t, addr: usize, data: usize) -> io::Result<i64> {
    // SAFETY: every caller in this file passes as `addr` and `data` what the request asks for: numbers, or pointers to live values.
    check(unsafe { libc::ptrace(req, tid, addr as *mut c_void, data as *mut c_void) })
}

/// Attaches to `tid` without stopping it.
pub fn seize(tid: pid_t, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, options as usize).map(drop)
}

/// Asks a seized thread to stop; the stop arrives through `wait`.
pub fn interrupt(tid: pid_t) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped thread run, delivering `signal` (0: none).
pub fn cont(tid: pid_t, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Lets a stopped thread run to the next entry or exit of a system call.
pub fn syscall_stop(tid: pid_t) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, 0).map(drop)
}

/// Ends the tracing of a stopped thread, which runs on after delivery of `signal` (0: none).
pub fn detach(tid: pid_t, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// Replaces the options of a stopped tracee.
pub fn set_options(tid: pid_t, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

/// The message of the last ptrace event: the new task's id after a clone.
pub fn event_message(tid: pid_t) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, 0, &mut message as *mut _ as usize)?;
    Ok(message)
}

/// The general registers.
pub fn regs(tid: pid_t) -> io::Result<user_regs_struct> {
    let mut regs = MaybeUninit::<user_regs_struct>::uninit();
    request(libc::PTRACE_GETREGS, tid, 0, regs.as_mut_ptr() as usize)?;
    // SAFETY: the kernel filled the whole struct.
    Ok(unsafe { regs.assume_init() })
}

/// Replaces the general registers.
pub fn set_regs(tid: pid_t, regs: &user_regs_struct) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, tid, 0, regs as *const _ as usize).map(drop)
}

/// The extended processor state (x87, SSE, AVX, AVX-512, PKRU …) as an XSAVE area.
pub fn xstate(tid: pid_t) -> io::Result<Vec<u8>> {
    let mut area = vec![0u8; 16 * 1024];
    let mut iov = iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE as usize, &mut iov as *mut _ as usize)?;
    area.truncate(iov.iov_len);
    Ok(area)
}

/// Replaces the extended processor state.
pub fn set_xstate(tid: pid_t, area: &[u8]) -> io::Result<()> {
    let mut iov = iovec { iov_base: area.as_ptr() as *mut c_void, iov_len: area.len() };
    request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE as usize, &mut iov as *mut _ as usize).map(drop)
}

/// The blocked signals, bit n−1 for signal n.
pub fn sigmask(tid: pid_t) -> io::Result<u64> {
    let mut mask = 0u64;
    request(libc::PTRACE_GETSIGMASK, tid, size_of::<u64>(), &mut mask as *mut _ as usize)?;
    Ok(mask)
}

/// Replaces the blocked signals.
pub fn set_sigmask(tid: pid_t, mask: u64) -> io::Result<()> {
    request(libc::PTRACE_SETSIGMASK, tid, size_of::<u64>(), &mask as *const _ as usize).map(drop)
}

#[repr(C)]
struct PeekArgs {
    off: u64,
    flags: u32,
    nr: i32,
}

/// The raw bytes of a siginfo.
pub type SigInfo = [u8; size_of::<siginfo_t>()];

/// Pending signals, oldest first: those of the whole process (`shared`), or of this thread.
pub fn pending(tid: pid_t, shared: bool) -> io::Result<Vec<SigInfo>> {
    let mut all = Vec::new();
    loop {
        let mut chunk = [[0u8; size_of::<siginfo_t>()]; 32];
        let args = PeekArgs { off: all.len() as u64, flags: if shared { PEEKSIGINFO_SHARED } else { 0 }, nr: 32 };
        let n = request(libc::PTRACE_PEEKSIGINFO, tid, &args as *const _ as usize, chunk.as_mut_ptr() as usize)?;
        all.extend_from_slice(&chunk[..n as usize]);
        if n < 32 {
            return Ok(all);
        }
    }
}

/// Where a thread registered its restartable sequences area.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub struct Rseq {
    /// Address of `struct rseq`; zero when none is registered.
    pub address: u64,
    /// Its registered size.
    pub size: u32,
    /// The signature that precedes abort handlers.
    pub signature: u32,
    /// Registration flags.
    pub flags: u32,
    pad: u32,
}

/// The restartable sequences registration of a thread.
pub fn rseq(tid: pid_t) -> io::Result<Rseq> {
    let mut conf = Rseq::default();
    request(GET_RSEQ_CONFIGURATION, tid, size_of::<Rseq>(), &mut conf as *mut _ as usize)?;
    Ok(conf)
}

/// The `index`-th seccomp filter, oldest first, as classic BPF instructions of 8 bytes; `None` past the last.
pub fn seccomp_filter(tid: pid_t, index: usize) -> io::Result<Option<Vec<u8>>> {
    let len = match request(SECCOMP_GET_FILTER, tid, index, 0) {
        Ok(len) => len as usize,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut program = vec![0u8; len * 8];
    request(SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr() as usize)?;
    Ok(Some(program))
}

/// The SECCOMP_FILTER_FLAG_* of the `index`-th seccomp filter, oldest first.
pub fn seccomp_flags(tid: pid_t, index: usize) -> io::Result<u64> {
    let mut metadata = [index as u64, 0];
    request(SECCOMP_GET_METADATA, tid, size_of::<[u64; 2]>(), metadata.as_mut_ptr() as usize)?;
    Ok(metadata[1])
}

/// One change of state of a tracee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The thread is gone, with this wait status.
    Gone(i32),
    /// About to receive this signal.
    Signal(i32),
    /// Stopped by us, or newly attached.
    Stop,
    /// Job control has stopped it by this signal; a seized tracee stays stopped.
    GroupStop(i32),
    /// At the entry or the exit of a system call.
    Syscall,
    /// Another event, such as PTRACE_EVENT_CLONE.
    Event(i32),
}

/// Waits for the next change of `tid`; `None` when there is none and `block` is false.
pub fn wait(tid: pid_t, block: bool) -> io::Result<Option<Event>> {
    let mut status = 0;
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `status` outlives the call.
        match check(unsafe { libc::waitpid(tid, &mut status, flags) }.into()) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(decode(status))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
    }
}

fn decode(status: i32) -> Event {
    if !libc::WIFSTOPPED(status) {
        return Event::Gone(status);
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Event::Stop,
        libc::PTRACE_EVENT_STOP => Event::GroupStop(signal),
        0 if signal == libc::SIGTRAP | 0x80 => Event::Syscall,
        0 => Event::Signal(signal),
        event => Event::Event(event),
    }
}

/// Registers that are all zero.
pub fn zero_regs() -> user_regs_struct {
    // SAFETY: plain integers.
    unsafe { std::mem::zeroed() }
}
