//! What needs a process of its own: other rights, other limits, a sudden end. Each program here is started by a test.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::prctl::set_dumpable;
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::signal::{raise, Signal};
use nix::sys::wait::{waitpid, WaitStatus};
use stillframe::error::Kind;
use stillframe::region::{Level, Method, Session, Snapshot};

use super::{builder, fill, holds, sandbox, LONG};

const COUNT: usize = 1 << 20;
/// What tells a program where the store of its test is.
const STORE: &str = "STILLFRAME_TEST_STORE";

/// A program of this file or another, as `nobody` if so wanted.
pub fn program(role: &str, nobody: bool, dir: &Path) -> Command {
    let ours = std::env::current_exe().unwrap();
    let mut command = Command::new(if nobody { "setpriv".into() } else { ours.clone() });
    if nobody {
        // The build may lie where others cannot look. By another process: a file that is open for writing anywhere does not run.
        let copy = dir.join("program");
        assert!(Command::new("cp").arg(&ours).arg(&copy).status().unwrap().success());
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]).arg(copy);
    }
    command.args(["--exact", role, "--ignored", "--nocapture", "--test-threads=1"]).stdin(Stdio::null());
    command.env(STORE, dir.join("store")).env("STILLFRAME_COMMAND", env!("CARGO_BIN_EXE_stillframe")).current_dir("/");
    command
}

fn run(role: &str, nobody: bool) -> (Output, String, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let out = program(&format!("alone::{role}"), nobody, dir.path()).output().expect("setpriv of util-linux is needed");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out, said, dir)
}

fn succeeds(role: &str, nobody: bool) {
    let (out, said, _dir) = run(role, nobody);
    assert!(out.status.success() && said.contains("1 passed"), "{}: {said}", out.status);
}

fn store_of_test() -> std::path::PathBuf {
    std::env::var_os(STORE).expect("started by another test").into()
}

fn newest(store: &Path) -> Vec<u64> {
    Snapshot::newest(store, "test").unwrap().read("numbers").unwrap()
}

/// Two snapshots, the second of little change; how each was frozen, and why.
fn two_snapshots(store: &Path, session: &Session) -> [(&'static str, String); 2] {
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    let mut how = || {
        let expected = region.to_vec();
        let ticket = session.snapshot(&1).unwrap();
        fill(&mut region, 2);
        let info = ticket.wait(Level::Verified, LONG).unwrap();
        assert!(newest(store) == expected, "{info:?}");
        region.copy_from_slice(&expected);
        region[7] += 1;
        (info.method, info.why)
    };
    [how(), how()]
}

#[test]
fn a_program_without_any_privilege_takes_snapshots() {
    succeeds("without_privilege", true);
}

#[test]
#[ignore = "a program of the test above"]
fn without_privilege() {
    assert!(!nix::unistd::geteuid().is_root());
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).open().unwrap();
    let [first, _] = two_snapshots(store.path(), &session);
    assert_eq!(first.0, "fork", "{first:?}");
    session.close().unwrap();
    let session = builder(store.path()).method(Method::WriteProtect).open().unwrap();
    // As the second of two snapshots.
    let region = session.alloc::<u64>("numbers", COUNT).unwrap();
    if let Err(refused) = session.snapshot(&1) {
        // What the kernel does not grant is said, with what helps.
        assert!(refused.to_string().contains("vm.unprivileged_userfaultfd"), "{refused}");
    }
    drop(region);
    session.close().unwrap();
    assert!(builder(store.path()).open().unwrap().resumed().is_some());
}

#[test]
fn a_program_that_may_not_be_traced_takes_snapshots() {
    succeeds("not_dumpable", true);
}

#[test]
#[ignore = "a program of the test above"]
fn not_dumpable() {
    set_dumpable(false).unwrap();
    // As under a Yama that lets nobody trace: nobody but root may look into such a process, and its twin is one.
    for method in [Method::Fork, Method::Auto] {
        let store = tempfile::tempdir().unwrap();
        let [first, _] = two_snapshots(store.path(), &builder(store.path()).method(method).open().unwrap());
        assert_eq!(first.0, "fork", "{first:?}");
    }
}

#[test]
fn where_no_fork_is_to_be_had_memory_is_write_protected() {
    succeeds("without_fork_as_root", false);
}

#[test]
#[ignore = "a program of the test above"]
fn without_fork_as_root() {
    sandbox::without_fork();
    let store = tempfile::tempdir().unwrap();
    let [first, second] = two_snapshots(store.path(), &builder(store.path()).open().unwrap());
    assert!(first.0 == "write-protect" && first.1.contains("no fork: cannot fork") && second.0 == "write-protect", "{first:?} {second:?}");
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).method(Method::Fork).open().unwrap();
    assert!(session.snapshot(&()).unwrap_err().to_string().contains("cannot fork"));
}

#[test]
fn where_neither_fork_nor_write_protection_is_to_be_had_memory_is_copied() {
    succeeds("without_fork_as_nobody", true);
}

#[test]
#[ignore = "a program of the test above"]
fn without_fork_as_nobody() {
    sandbox::without_fork();
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).open().unwrap();
    if session.alloc::<u8>("probe", 1).is_ok_and(|_probe| session.snapshot(&()).unwrap().info().method == "write-protect") {
        // A kernel that grants it to everybody.
        return;
    }
    drop(session);
    let [first, second] = two_snapshots(store.path(), &builder(store.path()).resume(stillframe::region::Resume::Fresh).open().unwrap());
    assert!(first.0 == "copy" && first.1.contains("no fork") && first.1.contains("no write protection") && second.0 == "copy", "{first:?} {second:?}");
    // Above the memory limit it is refused in words, and the program goes on.
    let session = builder(store.path()).memory_limit(1 << 20).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    let refused = session.snapshot(&2).unwrap_err();
    assert!(refused.kind() == Kind::Refused && refused.to_string().contains("memory limit") && refused.to_string().contains("no fork"), "{refused}");
    fill(&mut region, 9);
    assert!(holds(&region, 9));
}

#[test]
fn a_copy_without_memory_is_refused_and_the_next_one_is_whole() {
    succeeds("without_memory", true);
}

#[test]
#[ignore = "a program of the test above"]
fn without_memory() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).method(Method::Copy).memory_limit(1 << 30).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT * 16).unwrap();
    fill(&mut region, 1);
    let used: u64 = std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse::<u64>().unwrap() * 4096;
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, used + (64 << 20), hard).unwrap();
    let refused = session.snapshot(&1).unwrap_err();
    assert!(refused.errno() == Some(libc::ENOMEM) && refused.to_string().contains("no memory for copies of 134217728 bytes"), "{refused}");
    setrlimit(Resource::RLIMIT_AS, hard, hard).unwrap();
    session.snapshot(&2).unwrap().wait(Level::Verified, LONG).unwrap();
    assert!(holds(&newest(store.path()), 1));
}

#[test]
fn a_forked_child_cannot_use_or_harm_the_session_of_its_parent() {
    succeeds("forks", false);
}

#[test]
#[ignore = "a program of the test above"]
fn forks() {
    for method in [Method::Auto, Method::WriteProtect] {
        let store = tempfile::tempdir().unwrap();
        let session = builder(store.path()).method(method).open().unwrap();
        let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
        fill(&mut region, 1);
        let ticket = session.snapshot(&1).unwrap();
        // SAFETY: the child makes calls of the library and ends.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let refused = session.snapshot(&2).unwrap_err();
                let told = refused.kind() == Kind::Usage && refused.to_string().contains("of which this is a child");
                let told = told && session.alloc::<u8>("more", 1).unwrap_err().kind() == Kind::Usage;
                fill(&mut region, 3);
                drop((region, session));
                std::process::exit(i32::from(!told));
            }
            nix::unistd::ForkResult::Parent { child } => {
                fill(&mut region, 2);
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            }
        }
        ticket.wait(Level::Verified, LONG).unwrap();
        assert!(holds(&newest(store.path()), 1));
        session.snapshot(&2).unwrap().wait(Level::Verified, LONG).unwrap();
        assert!(holds(&newest(store.path()), 2));
    }
}

#[test]
fn a_crash_in_the_middle_of_a_transfer_leaves_the_version_before() {
    let (out, said, dir) = run("crashes", false);
    assert_eq!(out.status.signal(), Some(libc::SIGKILL), "{said}");
    let store = dir.path().join("store");
    assert!(holds(&newest(&store), 1));
    let session = builder(&store).open().unwrap();
    assert_eq!((session.state::<u64>().unwrap(), session.versions().unwrap().len()), (Some(1), 1));
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    assert!(holds(&region, 1));
    fill(&mut region, 3);
    session.snapshot(&3).unwrap().wait(Level::Verified, LONG).unwrap();
    // What was half written is gone.
    let files: Vec<_> = std::fs::read_dir(store.join("test")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files.iter().filter(|name| name.ends_with(".frame")).count(), 2, "{files:?}");
    assert!(files.iter().all(|name| name.ends_with(".frame") || name == ".session" || name == ".lock"), "{files:?}");
}

#[test]
#[ignore = "a program of the test above"]
fn crashes() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let crash = move |info: &stillframe::region::Info| {
        if info.level == Level::Stored {
            first.store(false, std::sync::atomic::Ordering::Relaxed);
        }
        if info.level == Level::Local && !first.load(std::sync::atomic::Ordering::Relaxed) {
            raise(Signal::SIGKILL).unwrap();
        }
    };
    let session = builder(&store_of_test()).on_progress(crash).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    for seed in [1, 2] {
        fill(&mut region, seed);
        session.snapshot(&seed).unwrap().wait(Level::Stored, LONG).unwrap();
    }
}

#[test]
fn signals_ask_for_a_snapshot_or_the_end_as_long_as_the_session_lives() {
    let (out, said, dir) = run("is_signalled", false);
    assert_eq!(out.status.signal(), Some(libc::SIGTERM), "{said}");
    assert_eq!(Snapshot::newest(dir.path().join("store"), "test").unwrap().state::<String>().unwrap().as_deref(), Some("last"));
}

#[test]
#[ignore = "a program of the test above"]
fn is_signalled() {
    let wrong = builder(&store_of_test()).exit_on("TERM, KILL").open().unwrap_err();
    assert!(wrong.kind() == Kind::Usage && wrong.to_string().contains("'KILL'"), "{wrong}");
    let session = builder(&store_of_test()).exit_on("TERM, SIGUSR2").snapshot_on("USR1").open().unwrap();
    // To this very thread, so that it has come when the call returns.
    let tell = |signal| raise(signal).unwrap();
    assert!(!session.due() && !session.should_exit());
    tell(Signal::SIGUSR1);
    assert!(session.due() && !session.should_exit());
    session.snapshot("first").unwrap().wait(Level::Stored, LONG).unwrap();
    assert!(!session.due());
    tell(Signal::SIGTERM);
    assert!(session.should_exit() && !session.due());
    session.snapshot("last").unwrap().wait(Level::Stored, LONG).unwrap();
    session.close().unwrap();
    // Now it means again what it meant before.
    tell(Signal::SIGTERM);
    unreachable!("a signal that ends the program did not");
}
