//! Attributes of a process as a whole: addresses that the kernel remembers, personality, umask, and what prctl(2) sets.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::proc::{self, maps, stat::Stat, status::Status, Pid};
use crate::tracee::blank::Blank;
use crate::tracee::visit::Visit;
use crate::tracee::{Remote, RemoteExt};

/// Attributes of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start, env_end.
    pub addresses: [u64; 11],
    /// The auxiliary vector.
    #[serde(with = "super::blob")]
    pub auxv: Vec<u8>,
    /// personality(2).
    pub personality: u32,
    /// umask(2).
    pub umask: u32,
    /// PR_GET_DUMPABLE.
    pub dumpable: u32,
    /// PR_GET_CHILD_SUBREAPER.
    pub subreaper: bool,
    /// PR_GET_THP_DISABLE.
    pub thp_disable: u32,
    /// PR_GET_TSC.
    pub tsc: u32,
    /// PR_GET_MDWE.
    pub deny_write_exec: u32,
    /// mlockall: MCL_FUTURE if new mappings get locked, with MCL_ONFAULT if only what is touched.
    pub locks_future: i32,
    /// Processor features it may use, bit n for XSAVE component n; 0 where the kernel does not tell.
    pub processor_permits: u64,
}

impl State {
    /// Whether it adopts orphans.
    pub fn is_subreaper(&self) -> bool {
        self.subreaper
    }
}

const PR_GET_MDWE: i32 = 66;
const PR_SET_MDWE: i32 = 65;
const PR_TSC_ENABLE: u32 = 1;
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// The only component that must be asked for.
const TILE_DATA: u64 = 18;

/// Reads the attributes of the visited process.
pub fn capture(visit: &mut Visit<'_>, status: &Status, stat: &Stat) -> Result<State> {
    let pid = visit.pid();
    let personality = u32::from_str_radix(proc::text(&proc::path(pid, "personality"))?.trim(), 16).unwrap_or(0);
    check(pid, personality, status)?;
    let brk = visit.must("read the end of its heap", libc::SYS_brk, [0; 6])?;
    let out = visit.scratch()?;
    let locks_future = future_locks(pid, out, status)?;
    let mut into_scratch = |what: &str, option: i32, at: u64| visit.must(what, libc::SYS_prctl, [option as u64, out + at, 0, 0, 0, 0]);
    into_scratch("ask whether it adopts orphans", libc::PR_GET_CHILD_SUBREAPER, 0)?;
    into_scratch("ask how it may use the time stamp counter", libc::PR_GET_TSC, 8)?;
    let permits_known = visit.call(libc::SYS_arch_prctl, [ARCH_GET_XCOMP_PERM, out + 16, 0, 0, 0, 0]).is_ok();
    let mut raw = [0; 24];
    visit.memory().read(out, &mut raw)?;
    let word = |at: usize| raw[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
    let mut plain = |option: i32| visit.call(libc::SYS_prctl, [option as u64, 0, 0, 0, 0, 0]).unwrap_or(0) as u32;
    let s = stat;
    Ok(State {
        addresses: [s.start_code, s.end_code, s.start_data, s.end_data, s.start_brk, brk, s.start_stack, s.arg_start, s.arg_end, s.env_start, s.env_end],
        dumpable: plain(libc::PR_GET_DUMPABLE),
        thp_disable: plain(libc::PR_GET_THP_DISABLE),
        deny_write_exec: plain(PR_GET_MDWE),
        auxv: fs::read(proc::path(pid, "auxv")).at("read", &proc::path(pid, "auxv"))?,
        personality,
        umask: status.octal("Umask")?,
        subreaper: word(0) != 0,
        tsc: word(8),
        locks_future,
        processor_permits: if permits_known { raw[16..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word)) } else { 0 },
    })
}

/// Refuses what no system call can bring back.
fn check(pid: Pid, personality: u32, status: &Status) -> Result<()> {
    // The low byte is the execution domain; the flags above it are harmless.
    if personality & 0xff != 0 {
        return Err(Error::refused(format!("pid {pid} has personality {personality:#x}, of another system than 64-bit Linux; start it without setarch or linux32")));
    }
    if status.get("x86_Thread_features").contains("shstk") {
        return Err(Error::refused(format!("pid {pid} uses a shadow stack, which cannot be restored; start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off")));
    }
    if !matches!(status.get("untag_mask"), "" | "0xffffffffffffffff") {
        return Err(Error::refused(format!("pid {pid} uses tagged addresses (LAM), which cannot be restored; start it without them")));
    }
    Ok(())
}

/// The kernel tells nobody whether new mappings get locked; but our scratch area is one.
fn future_locks(pid: Pid, scratch: u64, before: &Status) -> Result<i32> {
    if Status::read(pid)?.number("VmLck")? <= before.number("VmLck")? {
        return Ok(0);
    }
    let all = maps::parse_smaps(&proc::text(&proc::path(pid, "smaps"))?)?;
    let ours = all.iter().find(|flagged| (flagged.vma.start..flagged.vma.end).contains(&scratch));
    let on_fault = ours.is_some_and(|flagged| flagged.flags.iter().any(|flag| flag == "lf"));
    Ok(libc::MCL_FUTURE | if on_fault { libc::MCL_ONFAULT } else { 0 })
}


/// Sets what may be set before the process is complete. `exe` is the program file's descriptor in the blank; `None` leaves all
/// that belongs to the address space alone, because it is shared and set already.
pub fn restore(state: &State, blank: &mut Blank, exe: Option<u64>, notes: &mut Vec<String>) -> Result<()> {
    if let Some(fd) = exe {
        set_addresses(state, blank, fd as u32)?;
    }
    blank.must("set its personality", libc::SYS_personality, [u64::from(state.personality), 0, 0, 0, 0, 0])?;
    blank.must("set its umask", libc::SYS_umask, [u64::from(state.umask), 0, 0, 0, 0, 0])?;
    let mut set = |what: &str, number: i64, args: [u64; 3]| {
        if let Err(e) = blank.must(what, number, [args[0], args[1], args[2], 0, 0, 0]) {
            notes.push(e.to_string());
        }
    };
    set("set whether it adopts orphans", libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER as u64, state.subreaper.into(), 0]);
    // Bit 0 says "disabled", the others with what exceptions.
    let (disabled, exceptions) = (state.thp_disable & 1, state.thp_disable & !1);
    set("set its use of huge pages", libc::SYS_prctl, [libc::PR_SET_THP_DISABLE as u64, disabled.into(), exceptions.into()]);
    if state.tsc != PR_TSC_ENABLE && state.tsc != 0 {
        set("set its use of the time stamp counter", libc::SYS_prctl, [libc::PR_SET_TSC as u64, state.tsc.into(), 0]);
    }
    if state.processor_permits >> TILE_DATA & 1 == 1 {
        set("permit it the use of AMX tiles", libc::SYS_arch_prctl, [ARCH_REQ_XCOMP_PERM, TILE_DATA, 0]);
    }
    Ok(())
}

fn set_addresses(state: &State, blank: &mut Blank, exe: u32) -> Result<()> {
    const PR_SET_MM_MAP: u64 = 14;
    let auxv = blank.put(&state.auxv)?;
    let mut map: Vec<u8> = state.addresses.iter().chain([&auxv]).flat_map(|word| word.to_le_bytes()).collect();
    map.extend((state.auxv.len() as u32).to_le_bytes());
    map.extend(exe.to_le_bytes());
    let at = blank.put(&map)?;
    blank.must("set the addresses of its program, heap, stack and arguments", libc::SYS_prctl, [libc::PR_SET_MM as u64, PR_SET_MM_MAP, at, map.len() as u64, 0, 0])?;
    Ok(())
}

/// Sets what credential changes reset, and what would hinder the restore: the last attributes of all.
pub fn arm(state: &State, blank: &mut Blank) -> Result<()> {
    if state.deny_write_exec != 0 {
        blank.must("deny writable code", libc::SYS_prctl, [PR_SET_MDWE as u64, u64::from(state.deny_write_exec), 0, 0, 0, 0])?;
    }
    if state.locks_future != 0 {
        blank.must("lock its future memory", libc::SYS_mlockall, [state.locks_future as u64, 0, 0, 0, 0, 0])?;
    }
    // 2 (readable by root only) is the kernel's own doing after a change of identity and cannot be asked for.
    blank.must("set whether it may be dumped", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, u64::from(state.dumpable == 1), 0, 0, 0, 0])?;
    Ok(())
}
