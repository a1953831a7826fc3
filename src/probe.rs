//! What this machine offers, and what each thing that it lacks costs.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Result;
use crate::proc::{self, maps, stat, status::Status, Pid};
use crate::sys::probe::{self, Subject};
use crate::sys::{kcmp, pidfd, ptrace};
use crate::tracee::visit::Site;

/// One feature or privilege.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What it is called.
    pub name: &'static str,
    /// Whether it is here.
    pub present: bool,
    /// Whether nothing works without it.
    pub required: bool,
    /// What goes without it.
    pub cost: &'static str,
    /// What the test said, where it failed.
    pub problem: Option<String>,
}

/// A row of the table: name, whether it is required, what its absence costs, and how to find out.
type Row = (&'static str, bool, &'static str, fn(&Place) -> Result<(), String>);

/// Where the tests are made.
struct Place {
    own: Pid,
    status: Status,
    store: PathBuf,
    /// A child, stopped by ptrace where that works.
    subject: Result<Subject, String>,
}

const NOTHING: &str = "nothing works: no checkpoint, no restore";
const NO_CHECKPOINT: &str = "no checkpoint";
const NO_RESTORE: &str = "no restore";

const TABLE: &[Row] = &[
    ("ptrace", true, NOTHING, traces),
    ("ptrace of any process", false, "only descendants of stillframe can be checkpointed (kernel.yama.ptrace_scope), or processes of the same user", traces_any),
    ("pidfd_getfd", true, NOTHING, |_| text(pidfd_getfd())),
    ("kcmp", true, "no checkpoint: shared memory and descriptors cannot be told apart (CONFIG_KCMP)", |place| text(kcmp::files((place.own, 0), (place.own, 0)))),
    ("PAGEMAP_SCAN", true, "no checkpoint: pages in use cannot be found (Linux 6.7)", |_| text(probe::pagemap_scan())),
    ("PTRACE_GET_RSEQ_CONFIGURATION", true, NOTHING, |place| on_subject(place, |pid| ptrace::rseq(pid).map(drop))),
    ("PTRACE_PEEKSIGINFO", true, NO_CHECKPOINT, |place| on_subject(place, |pid| ptrace::pending(pid, true).map(drop))),
    ("vDSO padding", true, "no checkpoint: there is no place to make calls from (vdso=0?)", vdso_padding),
    ("clone3 set_tid", true, "no restore: processes cannot get their ids back (CAP_CHECKPOINT_RESTORE)", |_| text(set_tid())),
    ("PR_SET_MM_MAP", true, "no restore: heap and arguments cannot be placed (CONFIG_CHECKPOINT_RESTORE)", |place| set_mm_map(place.own)),
    ("map_files", true, "no restore: memory cannot be handed over (CAP_CHECKPOINT_RESTORE)", |_| text(probe::map_files())),
    ("CAP_CHECKPOINT_RESTORE", true, NO_RESTORE, |place| capability(place, &[40, 21])),
    ("store writable", true, "no checkpoint into this store", |place| text(tempfile::tempfile_in(&place.store))),
    ("CAP_SYS_ADMIN", false, "programs under a seccomp filter may refuse to be checkpointed, and cannot be restored", |place| capability(place, &[21])),
    ("CAP_SYS_RESOURCE", false, "raised limits and out-of-memory scores do not come back", |place| capability(place, &[24])),
    ("CAP_NET_ADMIN", false, "some socket options do not come back", |place| capability(place, &[12])),
    ("seccomp suspension", false, "programs under a seccomp filter may refuse to be checkpointed, and cannot be restored", |place| on_subject(place, |pid| ptrace::set_options(pid, ptrace::SYSGOOD | ptrace::SUSPEND_SECCOMP))),
    ("userfaultfd WP_ASYNC", false, "writes cannot be tracked: every frame is frozen by fork and reads all pages (Linux 6.7)", |_| text(probe::uffd_wp_async())),
    ("timer ids", false, "programs with timers of timer_create whose ids have gaps are slow to restore, or are refused (Linux 6.15)", |_| text(probe::timer_restore_ids())),
    ("time namespaces", false, "clocks cannot be made to go on where they stood (CONFIG_TIME_NS)", |_| text(probe::time_namespace())),
    ("unix_diag", false, "connected unix sockets are refused (module unix_diag)", |_| text(probe::unix_diag())),
    ("shm_next_id", false, "System V shared memory does not get its ids back", |_| text(OpenOptions::new().write(true).open("/proc/sys/kernel/shm_next_id"))),
    ("reflink in the store", false, "files saved with a frame are copied, not shared", |place| text(probe::reflink(&place.store))),
];

/// Tries everything; `store` is where frames would go.
pub fn all(store: &Path) -> Result<Vec<Finding>> {
    let own = std::process::id() as Pid;
    // A store need not exist before its first frame.
    let store = store.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new(".")).to_owned();
    let subject = Subject::new(0).and_then(|subject| subject.stop().map(|()| subject)).map_err(|e| e.to_string());
    let place = Place { own, status: Status::read(own)?, store, subject };
    Ok(TABLE.iter().map(|row| finding(row, &place)).collect())
}

fn finding(&(name, required, cost, test): &Row, place: &Place) -> Finding {
    let problem = test(place).err();
    Finding { name, present: problem.is_none(), required, cost, problem }
}

/// Whether a checkpoint and a restore can work with these findings.
pub fn suffices(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.present || !finding.required)
}

fn text<T>(result: Result<T, impl ToString>) -> Result<(), String> {
    result.map(drop).map_err(|e| e.to_string())
}

fn traces(place: &Place) -> Result<(), String> {
    place.subject.as_ref().map(drop).map_err(String::clone)
}

fn traces_any(place: &Place) -> Result<(), String> {
    const CAP_SYS_PTRACE: u32 = 19;
    let scope = proc::text(Path::new("/proc/sys/kernel/yama/ptrace_scope")).map_or(0, |scope| scope.trim().parse().unwrap_or(0));
    match (scope, capability(place, &[CAP_SYS_PTRACE])) {
        (3, _) => Err("kernel.yama.ptrace_scope is 3".to_owned()),
        (_, Ok(())) => Ok(()),
        (scope, Err(missing)) => Err(format!("{missing}, kernel.yama.ptrace_scope is {scope}")),
    }
}

/// Fails unless one of the capabilities is in force.
fn capability(place: &Place, any_of: &[u32]) -> Result<(), String> {
    let effective = place.status.hex("CapEff").map_err(|e| e.to_string())?;
    match any_of.iter().any(|number| effective & (1 << number) != 0) {
        true => Ok(()),
        false => Err(format!("capability {} is not in force", any_of[0])),
    }
}

fn pidfd_getfd() -> io::Result<()> {
    let child = Subject::new(0)?;
    pidfd::get(pidfd::open(child.pid)?.as_fd(), 0).map(drop)
}

fn on_subject(place: &Place, test: fn(Pid) -> io::Result<()>) -> Result<(), String> {
    let subject = place.subject.as_ref().map_err(String::clone)?;
    text(test(subject.pid))
}

/// A child with an id of our choice: the highest that nobody has.
fn set_tid() -> io::Result<()> {
    let highest = proc::text(Path::new("/proc/sys/kernel/pid_max")).ok().and_then(|max| max.trim().parse::<Pid>().ok()).unwrap_or(32_768);
    let free = (2..highest).rev().find(|&pid| !crate::tracee::blank::exists(pid)).ok_or(io::ErrorKind::StorageFull)?;
    Subject::new(free).map(drop)
}

fn set_mm_map(own: Pid) -> Result<(), String> {
    let stat = stat::read(own).map_err(|e| e.to_string())?;
    text(probe::set_mm_map(&stat))
}

fn vdso_padding(place: &Place) -> Result<(), String> {
    let vmas = maps::read(&proc::path(place.own, "maps")).map_err(|e| e.to_string())?;
    text(Site::find(place.own, &vmas))
}
