//! The heat solver of the examples, killed at random instants, ends with the same bits as when it is left alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often a run is killed, and how many steps it takes.
const KILLS: usize = 200;
const STEPS: &str = "800";
/// How long one run may take.
const BOUND: Duration = Duration::from_secs(300);

fn heat() -> PathBuf {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--example", "heat"]).status().unwrap();
    assert!(built.success(), "cargo build --example heat");
    Path::new(env!("CARGO_BIN_EXE_stillframe")).with_file_name("examples").join("heat")
}

fn command(program: &Path, store: &Path, steps: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(store).args([steps, "200", "20"]);
    command
}

/// The line with the sum, if the run came to its end.
fn outcome(program: &Path, store: &Path, steps: &str, kill_after: Option<Duration>) -> Option<String> {
    let mut child = command(program, store, steps).stdout(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < BOUND, "the solver hangs");
        if kill_after.is_some_and(|after| begun.elapsed() >= after) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() || kill_after.is_some(), "{}: {text}", out.status);
    text.lines().find(|line| line.contains("checksum")).map(str::to_owned)
}

/// Kills runs, lets some come to their end in between, and holds every end against the undisturbed one.
#[test]
fn a_solver_killed_at_random_instants_ends_with_the_same_bits() {
    let program = heat();
    let undisturbed = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let expected = outcome(&program, undisturbed.path(), STEPS, None).expect("a sum");
    let whole = begun.elapsed();
    let (mut killed, mut ends, mut seed) = (0, 0, u64::from(std::process::id()));
    println!("seed {seed}, a run takes {whole:?}, {expected}");
    let mut store = tempfile::tempdir().unwrap();
    while killed < KILLS || ends == 0 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Enough are killed early, and some live to see the end.
        let after = if killed < KILLS { Some(whole.mul_f64((seed >> 33) as f64 / (1u64 << 31) as f64 * 0.8)) } else { None };
        match outcome(&program, store.path(), STEPS, after) {
            None => killed += 1,
            Some(sum) => {
                assert_eq!(sum, expected, "after {killed} kills");
                ends += 1;
                store = tempfile::tempdir().unwrap();
            }
        }
    }
    println!("{killed} killed, {ends} came to the end");
}

/// A batch system's way to end a job: told to exit, it takes a last snapshot, and the next run goes on from there.
#[test]
fn a_solver_that_is_asked_to_exit_goes_on_with_the_same_bits() {
    let program = heat();
    let (undisturbed, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Long enough to be asked several times.
    let steps = "10000";
    let expected = outcome(&program, undisturbed.path(), steps, None).expect("a sum");
    let mut asked = 0;
    let ended = loop {
        let child = command(&program, store.path(), steps).stdout(Stdio::piped()).spawn().unwrap();
        // Before it has a session, the signal would just end it.
        std::thread::sleep(Duration::from_millis(if asked < 4 { 60 } else { 0 }));
        if asked < 4 && stillframe::store::DirStore::new(store.path()).holder("heat").is_ok_and(|holder| holder.is_some()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
        }
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{}: {text}", out.status);
        match text.lines().find(|line| line.contains("checksum")) {
            Some(sum) => break sum.to_owned(),
            None => assert!(text.contains("asked to exit at step"), "{text}"),
        }
        asked += 1;
        assert!(asked < 100);
    };
    assert_eq!(ended, expected, "after it was asked {asked} times");
    assert!(asked > 0);
}
