//! Who a thread is and what it may do: ids, groups, capabilities, securebits, no_new_privs, seccomp.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::proc::status::Status;
use crate::sys::ptrace;
use crate::tracee::blank::Blank;
use crate::tracee::visit::Visit;
use crate::tracee::{Remote, RemoteExt};

/// Rights of a thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
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
    /// PR_GET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Seccomp filters, newest first, as classic BPF.
    pub filters: Vec<Filter>,
}

/// A seccomp filter: instructions of 8 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter(#[serde(with = "super::blob")] pub Vec<u8>);

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

/// Reads the rights of the visiting thread.
pub fn capture(visit: &mut Visit<'_>, status: &Status) -> Result<State> {
    let four = |key: &str| -> Result<[u32; 4]> {
        let numbers = status.numbers(key)?;
        Ok(std::array::from_fn(|at| numbers.get(at).copied().unwrap_or(0) as u32))
    };
    Ok(State {
        uids: four("Uid")?,
        gids: four("Gid")?,
        groups: status.numbers("Groups")?.into_iter().map(|group| group as u32).collect(),
        capabilities: Capabilities::of(status)?,
        securebits: visit.must("read its securebits", libc::SYS_prctl, [libc::PR_GET_SECUREBITS as u64, 0, 0, 0, 0, 0])? as u32,
        no_new_privs: status.number("NoNewPrivs")? != 0,
        filters: filters(visit, status)?,
    })
}

fn filters(visit: &mut Visit<'_>, status: &Status) -> Result<Vec<Filter>> {
    const STRICT: &str = "1";
    let (pid, tid) = (visit.pid(), visit.thread().tid);
    let mut filters = Vec::new();
    match status.get("Seccomp") {
        "" | "0" => return Ok(filters),
        STRICT => return Err(Error::refused(format!("pid {pid} is in strict seccomp mode, in which no call can be injected; take its frame before it enters that mode"))),
        _ => {}
    }
    let read = |index| ptrace::seccomp_filter(tid, index).map_err(|e| Error::io(format!("pid {pid}: cannot read its seccomp filters (needs CAP_SYS_ADMIN)"), e));
    while let Some(program) = read(filters.len())? {
        filters.push(Filter(program));
    }
    Ok(filters)
}

/// Gives up all rights that the thread did not have. The order matters: filters while we may install them, ids while we may
/// change them, capabilities from the widest set to the narrowest.
pub fn arm(state: &State, blank: &mut Blank) -> Result<()> {
    install_filters(state, blank)?;
    let have = Capabilities::of(&Status::read_thread(blank.pid, blank.tid)?)?;
    set_ids(state, blank)?;
    set_capabilities(state, &have, blank)?;
    if state.no_new_privs {
        blank.must("set no_new_privs", libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0])?;
    }
    Ok(())
}

fn install_filters(state: &State, blank: &mut Blank) -> Result<()> {
    const SECCOMP_SET_MODE_FILTER: u64 = 1;
    if state.filters.is_empty() {
        return Ok(());
    }
    // Our own calls must not be judged by the filters being installed.
    blank.suspend_seccomp()?;
    for filter in state.filters.iter().rev() {
        let program = blank.put(&filter.0)?;
        let mut fprog = [0; 16];
        fprog[..2].copy_from_slice(&((filter.0.len() / 8) as u16).to_le_bytes());
        fprog[8..].copy_from_slice(&program.to_le_bytes());
        let at = blank.put(&fprog)?;
        blank.must("install a seccomp filter", libc::SYS_seccomp, [SECCOMP_SET_MODE_FILTER, 0, at, 0, 0, 0])?;
    }
    Ok(())
}

const KEEP_CAPS: u32 = 1 << 4;
const NO_SETUID_FIXUP: u32 = 1 << 2;

fn set_ids(state: &State, blank: &mut Blank) -> Result<()> {
    set_securebits(KEEP_CAPS | NO_SETUID_FIXUP, blank)?;
    let groups = blank.put(&state.groups.iter().flat_map(|group| group.to_le_bytes()).collect::<Vec<u8>>())?;
    blank.must("set its groups", libc::SYS_setgroups, [state.groups.len() as u64, groups, 0, 0, 0, 0])?;
    let wide = |ids: [u32; 4]| ids.map(u64::from);
    let ([gr, ge, gs, gf], [ur, ue, us, uf]) = (wide(state.gids), wide(state.uids));
    blank.must("set its group ids", libc::SYS_setresgid, [gr, ge, gs, 0, 0, 0])?;
    blank.must("set its filesystem group", libc::SYS_setfsgid, [gf, 0, 0, 0, 0, 0])?;
    blank.must("set its user ids", libc::SYS_setresuid, [ur, ue, us, 0, 0, 0])?;
    blank.must("set its filesystem user", libc::SYS_setfsuid, [uf, 0, 0, 0, 0, 0])?;
    Ok(())
}

fn set_securebits(bits: u32, blank: &mut Blank) -> Result<()> {
    blank.must("set its securebits", libc::SYS_prctl, [libc::PR_SET_SECUREBITS as u64, u64::from(bits), 0, 0, 0, 0]).map(drop)
}

fn set_capabilities(state: &State, have: &Capabilities, blank: &mut Blank) -> Result<()> {
    let want = &state.capabilities;
    for capability in (0..64).filter(|bit| (have.bounding & !want.bounding) >> bit & 1 == 1) {
        blank.must("narrow its bounding set", libc::SYS_prctl, [libc::PR_CAPBSET_DROP as u64, capability, 0, 0, 0, 0])?;
    }
    // Ambient capabilities need their permitted and inheritable bits first; securebits need CAP_SETPCAP still in force.
    capset(have.permitted, have.permitted, want.inheritable & (have.permitted | have.inheritable), blank)?;
    blank.must("clear its ambient set", libc::SYS_prctl, [libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, 0, 0, 0])?;
    for capability in (0..64).filter(|bit| want.ambient >> bit & 1 == 1) {
        blank.must("raise an ambient capability", libc::SYS_prctl, [libc::PR_CAP_AMBIENT as u64, libc::PR_CAP_AMBIENT_RAISE as u64, capability, 0, 0, 0])?;
    }
    set_securebits(state.securebits, blank)?;
    let permitted = want.permitted & have.permitted;
    capset(want.effective & permitted, permitted, want.inheritable & (have.permitted | have.inheritable), blank)
}

fn capset(effective: u64, permitted: u64, inheritable: u64, blank: &mut Blank) -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = blank.put(&[VERSION_3.to_le_bytes(), [0; 4]].concat())?;
    let halves = [effective, permitted, inheritable, effective >> 32, permitted >> 32, inheritable >> 32];
    let data = blank.put(&halves.iter().flat_map(|half| (*half as u32).to_le_bytes()).collect::<Vec<u8>>())?;
    blank.must("set its capabilities", libc::SYS_capset, [header, data, 0, 0, 0, 0]).map(drop)
}
