//! Attributes of processes and threads, captured from a real program, put on a blank process, and captured again from that.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{json, Value};
use stillframe::arch;
use stillframe::proc::{self, maps, status::Status, Pid};
use stillframe::resource::{credentials, limits, process, signals, threads, timers};
use stillframe::sys::ptrace;
use stillframe::tracee::blank::Blank;
use stillframe::tracee::memory::Memory;
use stillframe::tracee::seize::Frozen;
use stillframe::tracee::visit::{Site, Visit};
use stillframe::tracee::RemoteExt;

const AREA: u64 = 0x2000_0000_0000;
const HOLE: u64 = 0x1000_0000_0000;

fn program(dir: &Path) -> PathBuf {
    let binary = dir.join("attributes");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attributes.c");
    let built = Command::new("cc").args(["-Wall", "-Wextra", "-O1", "-pthread", "-o"]).arg(&binary).arg(source).status().unwrap();
    assert!(built.success(), "cc failed");
    binary
}

struct Target(Child);

impl Target {
    /// Starts the program; glibc must not register an rseq area, for the program has its own.
    fn start(args: &[&str]) -> (tempfile::TempDir, Target) {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(program(dir.path())).args(args).env("GLIBC_TUNABLES", "glibc.pthread.rseq=0").stdin(Stdio::null()).spawn().unwrap();
        let mut target = Target(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while proc::text(&proc::path(target.pid(), "comm")).unwrap().trim() != "ready" {
            assert!(target.0.try_wait().unwrap().is_none(), "the program failed");
            assert!(Instant::now() < deadline, "the program does not get ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(50));
        (dir, target)
    }

    fn pid(&self) -> Pid {
        self.0.id() as Pid
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything about one process.
struct Snapshot {
    signals: signals::State,
    timers: timers::State,
    limits: limits::State,
    process: process::State,
    threads: Vec<(Pid, threads::State)>,
}

impl Snapshot {
    fn take(pid: Pid) -> Snapshot {
        let mut frozen = Frozen::seize(pid).unwrap();
        let site = Site::find(pid, &maps::read(&proc::path(pid, "maps")).unwrap()).unwrap();
        let status = Status::read(pid).unwrap();
        let stopped = &mut frozen.processes[0];
        let (leader, others) = stopped.threads.split_first_mut().unwrap();
        let mut visit = Visit::begin(pid, leader, site).unwrap();
        let told = threads::ask(&mut visit, others).unwrap();
        let snapshot = Snapshot {
            signals: signals::capture(&mut visit, &status).unwrap(),
            timers: timers::capture(&mut visit).unwrap(),
            limits: limits::capture(pid).unwrap(),
            process: process::capture(&mut visit, &status, &stopped.stat).unwrap(),
            threads: threads::capture(&mut visit, others, &told).unwrap(),
        };
        drop(visit);
        frozen.thaw();
        snapshot
    }

    /// The same for threads of other ids.
    fn renumber(&mut self, ids: &[Pid]) {
        let thread_clock = |tid: Pid| (!tid << 3) | 6;
        for timer in &mut self.timers.timers {
            for ((old, _), new) in self.threads.iter().zip(ids) {
                if timer.clock == thread_clock(*old) {
                    timer.clock = thread_clock(*new);
                }
                if timer.tid == *old {
                    timer.tid = *new;
                    break;
                }
            }
        }
        self.threads.iter_mut().zip(ids).for_each(|((old, _), new)| *old = *new);
    }

    /// Comparable: remaining times rounded, and without what a blank process cannot have.
    fn comparable(mut self) -> Value {
        let round = |spec: &mut timers::Spec| {
            spec[2] = (spec[2] + 60) / 100 * 100;
            spec[3] = 0;
        };
        self.timers.intervals.iter_mut().for_each(round);
        self.timers.timers.iter_mut().for_each(|timer| round(&mut timer.spec));
        self.threads.iter_mut().for_each(|(_, thread)| thread.registers.clear());
        let threads: Vec<Value> = self.threads.iter().map(|(tid, thread)| json!({ "tid": tid, "state": thread })).collect();
        json!({ "signals": self.signals, "timers": self.timers, "limits": self.limits, "process": self.process, "threads": threads })
    }
}

/// Lists the leaves that differ, each with its path.
fn differences(path: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a.keys().for_each(|key| differences(&format!("{path}.{key}"), &a[key], b.get(key).unwrap_or(&Value::Null), found)),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a.iter().zip(b).enumerate().for_each(|(at, (a, b))| differences(&format!("{path}[{at}]"), a, b, found)),
        _ if a == b => {}
        _ => found.push(format!("{path}: was {a}, came back as {b}")),
    }
}

/// Puts a snapshot on a blank process in the engine's order, and lets that run into pause(2).
fn bring_back(snapshot: &mut Snapshot, notes: &mut Vec<String>) -> Blank {
    let mut blank = Blank::spawn(0).unwrap();
    blank.map_scratch(HOLE).unwrap();
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    blank.must("map the rseq area", libc::SYS_mmap, [AREA, 4096, (libc::PROT_READ | libc::PROT_WRITE) as u64, private, u64::MAX, 0]).unwrap();
    // Its registers behind a call: back to the call instruction, for pause(2).
    let mut regs = ptrace::regs(blank.tid).unwrap();
    (regs.rip, regs.rax, regs.orig_rax) = (regs.rip - 2, libc::SYS_pause as u64, u64::MAX);
    process::restore(&snapshot.process, &mut blank, Some(u32::MAX.into()), notes).unwrap();
    limits::restore(&snapshot.limits, &mut blank, notes).unwrap();
    signals::restore(&snapshot.signals, &mut blank).unwrap();
    let mut other = blank.thread(0).unwrap();
    snapshot.renumber(&[blank.tid, other.tid]);
    timers::restore(&snapshot.timers, &mut blank).unwrap();
    let states: Vec<&threads::State> = snapshot.threads.iter().map(|(_, state)| state).collect();
    threads::restore(states[0], &mut blank, notes).unwrap();
    threads::restore(states[1], &mut other, notes).unwrap();
    blank.block_signals().unwrap();
    other.block_signals().unwrap();
    timers::arm(&snapshot.timers, &mut blank).unwrap();
    signals::arm(&snapshot.signals, &mut blank).unwrap();
    credentials::confine(&mut [(&states[0].credentials, &mut blank), (&states[1].credentials, &mut other)]).unwrap();
    threads::arm(states[0], &mut blank, notes).unwrap();
    threads::arm(states[1], &mut other, notes).unwrap();
    process::arm(&snapshot.process, &mut blank).unwrap();
    blank.unmap_scratch().unwrap();
    for ((_, state), tid) in snapshot.threads.iter_mut().zip([blank.tid, other.tid]) {
        state.registers = arch::to_words(&regs).to_vec();
        threads::load_registers(state, tid).unwrap();
        ptrace::detach(tid, 0).unwrap();
    }
    blank
}

#[test]
fn every_attribute_comes_back() {
    let (_dir, target) = Target::start(&[]);
    let mut before = Snapshot::take(target.pid());
    check_special(&before);
    let mut notes = Vec::new();
    let blank = bring_back(&mut before, &mut notes);
    std::thread::sleep(Duration::from_millis(50));
    let after = Snapshot::take(blank.pid);
    let denied = proc::text(&proc::path(blank.pid, "status")).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(blank.pid), nix::sys::signal::SIGKILL).unwrap();
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(blank.pid), None).unwrap();
    assert!(notes.is_empty(), "{notes:#?}");
    assert!(denied.contains("Seccomp:\t2\nSeccomp_filters:\t2\n"), "{denied}");
    let mut found = Vec::new();
    differences("", &before.comparable(), &after.comparable(), &mut found);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The capture itself saw what the program set up: a comparison of two blind captures would prove nothing.
fn check_special(snapshot: &Snapshot) {
    let queued: Vec<(i32, i32)> = snapshot.signals.pending.iter().map(|p| (p.signal(), i32::from_le_bytes(p.0[24..28].try_into().unwrap()))).collect();
    let rt = libc::SIGRTMIN();
    assert_eq!(queued, [(rt + 3, 1), (rt + 3, 2), (rt + 3, 3), (libc::SIGUSR1, 7), (rt + 3, 4)]);
    // glibc keeps the signals below SIGRTMIN for itself.
    let actions: Vec<i32> = snapshot.signals.actions.iter().map(|action| action.signal).filter(|signal| !(32..rt).contains(signal)).collect();
    assert_eq!(actions, [libc::SIGHUP, libc::SIGUSR1, libc::SIGSEGV, libc::SIGCHLD, rt + 3]);
    assert_eq!(snapshot.timers.timers.iter().map(|timer| timer.id).collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
    assert_eq!(snapshot.timers.timers[2].tid, snapshot.threads[1].0);
    assert_eq!((snapshot.process.umask, snapshot.process.dumpable, snapshot.process.subreaper, snapshot.process.thp_disable), (0o31, 0, true, 1));
    assert_eq!((snapshot.process.tsc, snapshot.process.deny_write_exec, snapshot.limits.oom_score_adj), (2, 1, 500));
    let (leader, other) = (&snapshot.threads[0].1, &snapshot.threads[1].1);
    let rights = &leader.credentials.identity;
    assert_eq!((rights.uids, rights.gids, &rights.groups[..], rights.securebits), ([201, 202, 203, 204], [101, 102, 103, 104], &[11, 22, 33][..], 0x43));
    assert_eq!((rights.capabilities.ambient, rights.capabilities.permitted, rights.capabilities.inheritable), (1 << 10, 1 << 10 | 1, 1 << 10 | 1 << 5));
    assert_eq!(leader.credentials.filters.iter().map(|filter| filter.flags).collect::<Vec<_>>(), [0, 2]);
    assert_eq!((leader.rseq.address, leader.robust_list.0, leader.tid_address, leader.parent_death_signal), (AREA, AREA + 0x300, AREA + 0x400, libc::SIGURG));
    assert_eq!((leader.timer_slack, leader.io_priority, leader.scheduling.nice), (60_000, 2 << 13 | 3, 5));
    assert_eq!((other.timer_slack, other.io_priority, other.scheduling.nice, other.scheduling.policy, other.scheduling.flags), (70_000, 2 << 13 | 6, 11, 3, 1));
    assert_eq!(other.name, b"se\xc3\xa9 \\\nx\xc3");
    assert_eq!((other.pending.len(), other.alternate_stack[1], other.credentials.identity.uids), (1, 1 << 31, [0; 4]));
}

#[test]
fn a_thread_inside_a_restartable_sequence_starts_over() {
    let (_dir, target) = Target::start(&["spin"]);
    let pid = target.pid();
    let mut seen = 0;
    for _ in 0..20 {
        let mut frozen = Frozen::seize(pid).unwrap();
        let mut raw = [0; 32];
        Memory::open(pid).unwrap().read(AREA + 0x100, &mut raw).unwrap();
        let word = |at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().unwrap());
        let rip = frozen.leader().regs.rip;
        assert!(!(word(8)..word(8) + word(16)).contains(&rip), "{rip:#x} is inside the sequence");
        seen += u32::from(rip == word(24));
        frozen.thaw();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(seen > 10, "the abort handler was next only {seen} times of 20");
}
