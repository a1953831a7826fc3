//! Who a thread is and what it may do: ids, groups, capabilities, securebits, no_new_privs, seccomp.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::proc::{status::Status, Pid};
use crate::sys::ptrace;
use crate::tracee::blank::Blank;
use crate::tracee::RemoteExt;

/// Rights of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Who it is.
    pub identity: Identity,
    /// PR_GET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Seccomp allows read, write and exit alone.
    pub strict: bool,
    /// Seccomp filters, oldest first.
    pub filters: Vec<Filter>,
}

/// What decides permissions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Real, effective, saved and filesystem user.
    pub uids: [u32; 4],
    /// The same of groups.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capabilities.
    pub capabilities: Capabilities,
    /// PR_GET_SECUREBITS.
    pub securebits: u32,
}

/// A seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Classic BPF instructions of 8 bytes.
    #[serde(with = "super::blob")]
    pub program: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u64,
}

/// Capability sets, bit n for capability n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Kept over exec.
    pub inheritable: u64,
    /// May be made effective.
    pub permitted: u64,
    /// In force.
    pub effective: u64,
    /// The bounding set.
    pub bounding: u64,
    /// Kept over exec without file capabilities.
    pub ambient: u64,
}

impl Capabilities {
    fn of(status: &Status) -> Result<Capabilities> {
        Ok(Capabilities {
            inheritable: status.hex("CapInh")?,
            permitted: status.hex("CapPrm")?,
            effective: status.hex("CapEff")?,
            bounding: status.hex("CapBnd")?,
            ambient: status.hex("CapAmb")?,
        })
    }
}

impl Identity {
    fn of(status: &Status, securebits: u32) -> Result<Identity> {
        let four = |key: &str| -> Result<[u32; 4]> {
            let numbers = status.numbers(key)?;
            Ok(std::array::from_fn(|at| numbers.get(at).copied().unwrap_or(0) as u32))
        };
        Ok(Identity {
            uids: four("Uid")?,
            gids: four("Gid")?,
            groups: status.numbers("Groups")?.into_iter().map(|group| group as u32).collect(),
            capabilities: Capabilities::of(status)?,
            securebits,
        })
    }
}

/// Reads the rights of a stopped thread, which told its `securebits`.
pub fn capture(pid: Pid, tid: Pid, securebits: u32, status: &Status) -> Result<State> {
    const STRICT: &str = "1";
    const FILTERED: &str = "2";
    let mode = status.get("Seccomp");
    Ok(State {
        identity: Identity::of(status, securebits)?,
        no_new_privs: status.number("NoNewPrivs")? != 0,
        strict: mode == STRICT,
        filters: if mode == FILTERED { filters(pid, tid)? } else { Vec::new() },
    })
}

fn filters(pid: Pid, tid: Pid) -> Result<Vec<Filter>> {
    let failed = |e| Error::io(format!("pid {pid}: cannot read its seccomp filters (needs CAP_SYS_ADMIN)"), e);
    let mut filters = Vec::new();
    while let Some(program) = ptrace::seccomp_filter(tid, filters.len()).map_err(failed)? {
        if program.chunks_exact(8).any(asks_a_supervisor) {
            return Err(Error::refused(format!("pid {pid}: a seccomp filter of it asks another process (SECCOMP_RET_USER_NOTIF), whose descriptor cannot be restored; run it without that supervisor")));
        }
        filters.push(Filter { program, flags: ptrace::seccomp_flags(tid, filters.len()).map_err(failed)? });
    }
    Ok(filters)
}

/// `struct sock_filter`: a return of SECCOMP_RET_USER_NOTIF with any data.
fn asks_a_supervisor(instruction: &[u8]) -> bool {
    const RETURN_CONSTANT: [u8; 2] = [0x06, 0x00];
    const USER_NOTIF: [u8; 2] = [0xc0, 0x7f];
    instruction.starts_with(&RETURN_CONSTANT) && instruction.ends_with(&USER_NOTIF)
}

/// Puts the threads of one process, leader first, under their seccomp filters, which do not act before we let go of them.
/// While that is so, and while we still may, `arm` comes.
pub fn confine(threads: &mut [(&State, &mut Blank)]) -> Result<()> {
    const SYNCHRONISE_THREADS: u64 = 1;
    for (state, blank) in threads.iter_mut() {
        if state.no_new_privs {
            blank.must("set no_new_privs", libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0])?;
        }
        if state.strict || !state.filters.is_empty() {
            blank.suspend_seccomp()?;
        }
    }
    // Threads that share their filters may later add more for all of them at once: let them share again.
    let alike = threads.iter().all(|(state, _)| state.filters == threads[0].0.filters);
    let (installers, flag) = if alike { (1, SYNCHRONISE_THREADS) } else { (threads.len(), 0) };
    for (state, blank) in threads.iter_mut().take(installers) {
        state.filters.iter().try_for_each(|filter| install(filter, flag, blank))?;
    }
    for (_, blank) in threads.iter_mut().filter(|(state, _)| state.strict) {
        blank.must("enter strict seccomp mode", libc::SYS_prctl, [libc::PR_SET_SECCOMP as u64, 1, 0, 0, 0, 0])?;
    }
    Ok(())
}

fn install(filter: &Filter, flag: u64, blank: &mut Blank) -> Result<()> {
    const SET_MODE_FILTER: u64 = 1;
    let program = blank.put(&filter.program)?;
    let mut header = [0; 16];
    header[..2].copy_from_slice(&((filter.program.len() / 8) as u16).to_le_bytes());
    header[8..].copy_from_slice(&program.to_le_bytes());
    let at = blank.put(&header)?;
    blank.must("install a seccomp filter", libc::SYS_seccomp, [SET_MODE_FILTER, filter.flags | flag, at, 0, 0, 0]).map(drop)
}

/// Gives up all rights that the thread did not have. The order matters: ids while we may change them, capabilities from the
/// widest set to the narrowest.
pub fn arm(state: &State, blank: &mut Blank, notes: &mut Vec<String>) -> Result<()> {
    let status = Status::read_thread(blank.pid, blank.tid)?;
    let securebits = blank.must("read its securebits", libc::SYS_prctl, [libc::PR_GET_SECUREBITS as u64, 0, 0, 0, 0, 0])?;
    let have = Identity::of(&status, securebits as u32)?;
    let want = &state.identity;
    // Nothing to change needs no privilege to change it.
    if have == *want {
        return Ok(());
    }
    let lost = (want.capabilities.permitted | want.capabilities.bounding) & !(have.capabilities.permitted | have.capabilities.bounding);
    if lost != 0 {
        notes.push(format!("thread {}: capabilities {lost:#x} are not ours to give (run with full privileges to keep them)", blank.tid));
    }
    set_securebits(KEEP_CAPS | NO_SETUID_FIXUP, blank)?;
    set_ids(want, blank)?;
    set_capabilities(want, &have.capabilities, blank)
}

const KEEP_CAPS: u32 = 1 << 4;
const NO_SETUID_FIXUP: u32 = 1 << 2;

fn set_ids(want: &Identity, blank: &mut Blank) -> Result<()> {
    let groups = blank.put(&want.groups.iter().flat_map(|group| group.to_le_bytes()).collect::<Vec<u8>>())?;
    blank.must("set its groups", libc::SYS_setgroups, [want.groups.len() as u64, groups, 0, 0, 0, 0])?;
    let wide = |ids: [u32; 4]| ids.map(u64::from);
    let ([gr, ge, gs, gf], [ur, ue, us, uf]) = (wide(want.gids), wide(want.uids));
    blank.must("set its group ids", libc::SYS_setresgid, [gr, ge, gs, 0, 0, 0])?;
    blank.must("set its filesystem group", libc::SYS_setfsgid, [gf, 0, 0, 0, 0, 0])?;
    blank.must("set its user ids", libc::SYS_setresuid, [ur, ue, us, 0, 0, 0])?;
    blank.must("set its filesystem user", libc::SYS_setfsuid, [uf, 0, 0, 0, 0, 0])?;
    Ok(())
}

fn set_securebits(bits: u32, blank: &mut Blank) -> Result<()> {
    blank.must("set its securebits", libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, u64::from(bits), 0, 0, 0, 0]).map(drop)
}

fn set_capabilities(identity: &Identity, have: &Capabilities, blank: &mut Blank) -> Result<()> {
    let want = &identity.capabilities;
    // A capability can become inheritable only while the bounding set holds it.
    let inheritable = want.inheritable & (have.inheritable | have.bounding);
    capset(have.permitted, have.permitted, inheritable, blank)?;
    for capability in (0..64).filter(|bit| (have.bounding & !want.bounding) >> bit & 1 == 1) {
        blank.must("narrow its bounding set", libc::SYS_prctl, [libc::PR_CAPBSET_DROP as u64, capability, 0, 0, 0, 0])?;
    }
    let permitted = want.permitted & have.permitted;
    blank.must("clear its ambient set", libc::SYS_prctl, [libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0, 0, 0])?;
    for capability in (0..64).filter(|bit| (want.ambient & permitted & inheritable) >> bit & 1 == 1) {
        blank.must("raise an ambient capability", libc::SYS_prctl, [libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_RAISE as u64, capability, 0, 0, 0])?;
    }
    // They may forbid to raise ambient capabilities, and need CAP_SETPCAP.
    set_securebits(identity.securebits, blank)?;
    capset(want.effective & permitted, permitted, inheritable, blank)
}

fn capset(effective: u64, permitted: u64, inheritable: u64, blank: &mut Blank) -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = blank.put(&[VERSION_3.to_le_bytes(), [0; 4]].concat())?;
    let halves = [effective, permitted, inheritable, effective >> 32, permitted >> 32, inheritable >> 32];
    let data = blank.put(&halves.iter().flat_map(|half| (*half as u32).to_le_bytes()).collect::<Vec<u8>>())?;
    blank.must("set its capabilities", libc::SYS_capset, [header, data, 0, 0, 0, 0]).map(drop)
}
