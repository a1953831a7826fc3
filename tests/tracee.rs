//! The process side's primitive: stop, call, twin, let go; against live processes.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stillframe::proc::{self, maps, Pid};
use stillframe::tracee::blank::Blank;
use stillframe::tracee::seize::Frozen;
use stillframe::tracee::twin::{Kin, Twin};
use stillframe::tracee::visit::{Site, Visit};
use stillframe::tracee::Remote;

struct Target(Child);

impl Target {
    fn start(program: &str, args: &[&str]) -> Target {
        let child = Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        Target(child)
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

fn site(pid: Pid) -> Site {
    Site::find(pid, &maps::read(&proc::path(pid, "maps")).unwrap()).unwrap()
}

#[test]
fn a_sleeper_answers_calls_and_sleeps_on() {
    let mut target = Target::start("sleep", &["1.5"]);
    let pid = target.pid();
    for _ in 0..20 {
        let mut frozen = Frozen::seize(pid).unwrap();
        let mut visit = Visit::begin(pid, frozen.leader(), site(pid)).unwrap();
        assert_eq!(visit.call(libc::SYS_getpid, [0; 6]).unwrap(), pid as u64);
        assert_eq!(visit.call(libc::SYS_close, [999, 0, 0, 0, 0, 0]).unwrap_err().raw_os_error(), Some(libc::EBADF));
        visit.scratch().unwrap();
        drop(visit);
        frozen.thaw();
    }
    assert!(target.0.wait().unwrap().success(), "the sleep was disturbed");
}

#[test]
fn a_twin_holds_the_memory_of_the_instant_and_leaves_no_trace() {
    for kin in [Kin::Orphan, Kin::OrphanOfSubreaper, Kin::Child] {
        let mut target = Target::start("python3", &["-c", "import time\nx = bytearray(1 << 20)\nwhile True: time.sleep(0.01)"]);
        let pid = target.pid();
        std::thread::sleep(Duration::from_millis(300));
        let mut frozen = Frozen::seize(pid).unwrap();
        let site = site(pid);
        let mut visit = Visit::begin(pid, frozen.leader(), site).unwrap();
        let twin = Twin::fork(&mut visit, kin).unwrap();
        drop(visit);
        let text = proc::text(&proc::path(pid, "maps")).unwrap();
        frozen.thaw();
        twin.drop_descriptors().unwrap();
        assert!(proc::numbers(&proc::path(twin.pid, "fd")).unwrap().is_empty());
        assert_eq!(text.lines().filter(|l| l.contains("heap")).collect::<Vec<_>>(), proc::text(&proc::path(twin.pid, "maps")).unwrap().lines().filter(|l| l.contains("heap")).collect::<Vec<_>>());
        let id = twin.pid;
        twin.end().unwrap();
        assert!(proc::children(pid).unwrap().is_empty(), "{kin:?}: twin {id} is still a child");
        assert!(target.0.try_wait().unwrap().is_none());
    }
}

#[test]
fn blank_processes_and_threads_have_the_ids_we_choose() {
    // Half of all ids away from those that other processes get just now.
    let number = |path: &str| -> i32 { std::fs::read_to_string(path).unwrap().split_whitespace().last().unwrap().parse().unwrap() };
    let (last, most) = (number("/proc/loadavg"), number("/proc/sys/kernel/pid_max"));
    let distant = ((last + most / 2) % most).max(1000);
    let is_free = |pid: &i32| (*pid..pid + 8).all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists());
    let free = (distant..most - 8).chain(1000..most - 8).find(is_free).unwrap();
    let mut blank = Blank::spawn(free).unwrap();
    assert_eq!(blank.call(libc::SYS_getpid, [0; 6]).unwrap(), free as u64);
    let hole = 0x1000_0000_0000;
    blank.map_scratch(hole).unwrap();
    let mut child = blank.fork(free + 1, 0, libc::SIGCHLD).unwrap();
    assert_eq!(child.call(libc::SYS_getppid, [0; 6]).unwrap(), free as u64);
    let mut thread = child.thread(free + 7).unwrap();
    assert_eq!(thread.call(libc::SYS_gettid, [0; 6]).unwrap(), (free + 7) as u64);
    let taken = Blank::spawn(free).map(|b| b.pid).unwrap_err().to_string();
    assert!(taken.contains("in use"), "{taken}");
    for pid in [free + 1, free] {
        std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    }
}
