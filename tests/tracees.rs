//! Runs every self-checking tracee three times: untouched, as the original of a
//! checkpoint that must do it no harm, and restored from a frame after being killed.
//! Some (all of them in a long run) are restored once more, to run before their memory is there.
//!
//! Needs root and a C compiler. A restore takes the original pids, so anything that
//! starts processes at the same time may get in the way; such collisions are retried.

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use common::Scratch;

const ATTEMPTS: usize = 5;

/// How one tracee departs from the usual.
#[derive(Clone, Copy, Default)]
struct Options {
    /// More arguments of `stillframe checkpoint`.
    checkpoint: &'static [&'static str],
    /// More arguments of `stillframe restore`.
    restore: &'static [&'static str],
}

type Verdict = Result<String, String>;

/// The tracee alone: a failure here is its own.
fn plain(scratch: &Scratch, program: &Path) -> Verdict {
    let mut child = scratch.start(program)?;
    scratch.go()?;
    finish(scratch, &mut child)
}

/// The verdict of a tracee that is our child, and its exit status.
fn finish(scratch: &Scratch, child: &mut std::process::Child) -> Verdict {
    let remark = scratch.verdict()?;
    match common::wait_bounded(child) {
        Some(status) if status.success() => Ok(remark),
        Some(status) => Err(format!("reported ok, yet {status}")),
        None => Err("reported ok, yet does not end".into()),
    }
}

fn checkpoint(scratch: &Scratch, pid: u32, then: &str, options: Options) -> Result<(), String> {
    let (pid, store) = (pid.to_string(), scratch.store().display().to_string());
    let mut args = vec![
        "checkpoint",
        &pid,
        "--name",
        "frame",
        "--store",
        &store,
        "--then",
        then,
    ];
    args.extend(options.checkpoint);
    scratch.stillframe(&args).map(drop)
}

/// The original goes on after a checkpoint as if nothing had been.
fn original(scratch: &Scratch, program: &Path, options: Options) -> Verdict {
    let mut child = scratch.start(program)?;
    checkpoint(scratch, child.id(), "run", options)?;
    scratch.go()?;
    finish(scratch, &mut child)
}

/// The tracee is killed by the checkpoint and comes back from the frame.
fn restored(scratch: &Scratch, program: &Path, options: Options, lazy: bool) -> Verdict {
    let mut child = scratch.start(program)?;
    let root = child.id() as i32;
    let ids = scratch.occupied(root);
    checkpoint(scratch, child.id(), "kill", options)?;
    common::wait_bounded(&mut child).ok_or("the original outlives --then kill")?;
    common::wait_gone(&ids)?;
    let store = scratch.store().display().to_string();
    let mut args = vec!["restore", "frame", "--store", &store, "--detach"];
    args.extend(options.restore);
    args.extend(lazy.then_some("--lazy"));
    let printed = scratch.stillframe(&args)?;
    if printed.trim() != root.to_string() {
        return Err(format!("restore should print {root}, got {printed:?}"));
    }
    scratch.go()?;
    let remark = scratch.verdict()?;
    common::wait_ended(root)?;
    Ok(remark)
}

/// Runs one stage in a fresh scratch directory; panics with everything known.
fn stage(name: &str, what: &str, body: impl Fn(&Scratch) -> Verdict) -> String {
    for attempt in 1.. {
        let scratch = Scratch::new().expect("scratch directory");
        match body(&scratch) {
            Ok(remark) => return remark,
            // Some other process was given one of the pids: bad luck, not a failure.
            Err(e) if e.contains("in use") && attempt < ATTEMPTS => continue,
            Err(e) => panic!("{name}, {what}: {e}\n{}", scratch.describe()),
        }
    }
    unreachable!("the last attempt returns or panics")
}

fn run(name: &str, options: Options) {
    assert!(nix::unistd::geteuid().is_root(), "these tests need root");
    let program = common::build(name).unwrap_or_else(|e| panic!("{e}"));
    let remarks: BTreeSet<String> = [
        stage(name, "without a checkpoint", |s| plain(s, &program)),
        stage(name, "the original after a checkpoint", |s| {
            original(s, &program, options)
        }),
        stage(name, "restored", |s| restored(s, &program, options, false)),
    ]
    .into();
    for remark in remarks.iter().filter(|r| !r.is_empty()) {
        // Past the capture of test output: what was skipped must be seen.
        let _ = writeln!(std::io::stderr(), "{name}: {remark}");
    }
}

/// Huge pages for the tests that need some; puts the number back at the end.
struct HugePages {
    before: String,
}

impl HugePages {
    const PATH: &'static str = "/proc/sys/vm/nr_hugepages";

    fn reserve(wanted: u32) -> Self {
        let before = std::fs::read_to_string(Self::PATH).unwrap_or_default();
        if before.trim().parse().is_ok_and(|have: u32| have < wanted) {
            // A refusal shows as "skipped" in the tracee's verdict.
            let _ = std::fs::write(Self::PATH, wanted.to_string());
        }
        Self { before }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::PATH, &self.before);
    }
}

/// One test per tracee, and the list of all for the check that none is forgotten.
macro_rules! tracees {
    ($($name:ident $(: $options:expr)?,)*) => {
        const LISTED: &[&str] = &["mem_hugetlb", $(stringify!($name)),*];

        fn options(name: &str) -> Options {
            let special = [("mem_hugetlb", &[][..]), $((stringify!($name), &[$($options)?][..])),*];
            let found: &[Options] = special.iter().find(|(other, _)| *other == name).map_or(&[], |(_, options)| options);
            found.first().copied().unwrap_or_default()
        }

        $(
            #[test]
            fn $name() {
                run(stringify!($name), options(stringify!($name)));
            }
        )*
    };
}

const FORK: Options = Options {
    checkpoint: &["--method", "fork"],
    restore: &[],
};

const CLOSE_TCP: Options = Options {
    checkpoint: &["--tcp", "close"],
    restore: &[],
};

tracees! {
    cpu_control,
    cpu_gpr,
    cpu_vector,
    cred_caps,
    cred_dumpable,
    cred_ids,
    cred_seccomp,
    fd_deleted,
    fd_dev,
    fd_dir,
    fd_dup,
    fd_epoll,
    fd_eventfd,
    fd_fifo,
    fd_file,
    fd_inotify,
    fd_opath,
    fd_owner,
    fd_pipe,
    fd_pipe_fork,
    fd_signalfd,
    fd_tmpfile,
    fs_chroot,
    fs_dirs,
    lock_flock,
    lock_ofd,
    lock_posix,
    mem_anon,
    mem_brk,
    mem_file_deleted,
    mem_file_eof,
    mem_file_private,
    mem_file_shared,
    mem_guard: FORK,
    mem_madvise,
    mem_many_vmas,
    mem_memfd,
    mem_mlock,
    mem_mlock_future,
    mem_prot,
    mem_shared_anon,
    mem_stack,
    mem_sysv,
    mem_thp,
    proc_args,
    proc_prctl,
    pty_job,
    pty_pair,
    res_limits,
    res_sched,
    sig_altstack,
    sig_handlers,
    sig_nested,
    sig_pending,
    sig_stopped,
    sig_suspend,
    tcp_established: CLOSE_TCP,
    tcp_listen,
    tcp_opts,
    thr_attrs,
    thr_blocked_io,
    thr_futex,
    thr_poll,
    thr_robust,
    thr_rseq,
    thr_sigwait,
    thr_sleep,
    thr_waitpid,
    timer_clock,
    timer_fd,
    timer_itimer,
    timer_posix,
    tree_files,
    tree_many,
    tree_sessions,
    tree_subreaper,
    tree_vm,
    tree_wait,
    tree_zombies,
    udp_sockets,
    unix_connected,
    unix_dgram_named,
    unix_listen,
    unix_names,
    unix_opts,
    unix_packets,
    unix_rights,
    unix_shutdown,
    unix_stream,
}

#[test]
fn mem_hugetlb() {
    let _pages = HugePages::reserve(8);
    run("mem_hugetlb", Options::default());
}

/// Those that have most to do with memory, threads and rights; all of them in a long run.
fn is_sampled(name: &str) -> bool {
    const SAMPLE: &[&str] = &["cred_ids", "cred_seccomp", "fd_pipe", "proc_args", "thr_futex", "thr_robust", "thr_rseq", "tree_many", "tree_vm"];
    name.starts_with("mem_") || SAMPLE.contains(&name) || std::env::var_os("STILLFRAME_STRESS").is_some_and(|value| value == "1")
}

#[test]
fn restored_before_their_memory_is_there() {
    let _pages = HugePages::reserve(8);
    for name in LISTED.iter().filter(|name| is_sampled(name)) {
        let program = common::build(name).unwrap_or_else(|e| panic!("{e}"));
        stage(name, "restored lazily", |s| restored(s, &program, options(name), true));
    }
}

#[test]
fn every_tracee_is_listed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tracees");
    let files = std::fs::read_dir(dir).expect("tests/tracees");
    let sources: BTreeSet<String> = files
        .filter_map(|f| Some(f.ok()?.file_name().to_str()?.strip_suffix(".c")?.to_owned()))
        .collect();
    let listed: BTreeSet<String> = LISTED.iter().map(|s| s.to_string()).collect();
    assert_eq!(sources, listed);
}
