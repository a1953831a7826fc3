//! `stillframe run`: a program that counts in memory must go on where it was, whatever ends it or us.
//!
//! Needs root and a C compiler. A restore takes the original pids, so anything that starts processes at the same time may
//! get in the way; such collisions are retried.

#[path = "../common/mod.rs"]
#[allow(dead_code)]
mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use common::{poll_until, wait_bounded, wait_gone};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use stillframe::store::{DirStore, Store};
use tempfile::TempDir;

/// A run, ended when a test gives up.
struct Run(Child);

impl Run {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Both fail only if it has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A scratch directory, and the runs in it.
struct Scene {
    dir: TempDir,
    counter: &'static Path,
}

/// The counter's program, compiled once: a rebuild would replace it under the feet of those that run.
fn counter() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run_command/counter.c");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("counter.{}", std::process::id()));
        let status = Command::new("cc").args(["-Wall", "-Wextra", "-Werror", "-O2", "-o"]).args([&program, &source]).status().unwrap();
        assert!(status.success(), "cc {}: {status}", source.display());
        program
    })
}

impl Scene {
    fn new() -> Scene {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        Scene { dir: tempfile::tempdir().unwrap(), counter: counter() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self) -> DirStore {
        DirStore::new(self.path("store"))
    }

    fn frames(&self) -> Vec<u64> {
        self.store().list(Some("job")).unwrap_or_default().iter().map(|frame| frame.seq()).collect()
    }

    /// `stillframe run` with `options`, on a counter with these `arguments`.
    fn run(&self, options: &[&str], arguments: [&str; 3]) -> Run {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillframe"));
        command.args(["run", "--name", "job", "--store"]).arg(self.path("store")).args(options).arg("--");
        command.arg(self.counter).arg(self.path("out")).args(arguments).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Run(command.spawn().unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn numbers(&self) -> Vec<u64> {
        fs::read_to_string(self.path("out")).unwrap_or_default().lines().map(|line| line.parse().unwrap()).collect()
    }

    /// The counter's process id, as the log last said.
    fn pid(&self) -> Option<i32> {
        let log = self.log();
        log.rsplit_once("as process ")?.1.lines().next()?.parse().ok()
    }

    fn wait(&self, what: &str, met: impl Fn() -> bool) -> Result<(), String> {
        poll_until(|| met().then_some(())).ok_or_else(|| format!("waited in vain: {what}"))
    }

    fn ends(&self, run: &mut Run, status: i32) -> Result<(), String> {
        match wait_bounded(&mut run.0) {
            Some(ended) if ended.code() == Some(status) => Ok(()),
            ended => Err(format!("run should exit with {status}, not {ended:?}")),
        }
    }

    /// Whether every number from 1 to `last` was written, a few of them more than once after going back.
    fn counted(&self, last: u64) -> Result<(), String> {
        let numbers = self.numbers();
        let steps = numbers.windows(2).all(|pair| pair[1] <= pair[0] + 1);
        let anew = numbers.iter().filter(|&&number| number == 1).count();
        match steps && anew == 1 && numbers.last() == Some(&last) {
            true => Ok(()),
            false => Err(format!("numbers {numbers:?}")),
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // What a failed test left running: only a counter that writes to this directory.
        let out = self.path("out").display().to_string();
        for pid in self.log().split("as process ").skip(1).filter_map(|rest| rest.lines().next()?.parse::<i32>().ok()) {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&arguments).contains(&out) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

/// Runs a scenario; a pid that some other process was given meanwhile is bad luck.
fn scenario(body: impl Fn(&Scene) -> Result<(), String>) {
    const ATTEMPTS: usize = 5;
    for attempt in 1.. {
        let scene = Scene::new();
        match body(&scene) {
            Ok(()) => return,
            Err(_) if scene.log().contains("in use") && attempt < ATTEMPTS => continue,
            Err(e) => panic!("{e}\n{}", scene.log()),
        }
    }
}

#[test]
fn goes_on_after_run_and_program_are_killed() {
    scenario(|scene| {
        let run = scene.run(&["--every", "200ms"], ["60", "0", "0"]);
        scene.wait("a second frame", || scene.frames().len() > 1)?;
        let pid = scene.pid().ok_or("no pid in the log")?;
        run.signal(Signal::SIGKILL);
        kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(|e| e.to_string())?;
        drop(run);
        wait_gone(&[pid])?;
        let mut again = scene.run(&["--every", "200ms"], ["60", "0", "0"]);
        scene.ends(&mut again, 0)?;
        scene.counted(60)?;
        match scene.log().contains("resumed from job@") && scene.frames().is_empty() {
            true => Ok(()),
            false => Err(format!("frames of the finished program: {:?}", scene.frames())),
        }
    });
}

#[test]
fn skips_a_damaged_frame() {
    scenario(|scene| {
        let mut run = scene.run(&["--every", "200ms"], ["0", "0", "0"]);
        scene.wait("a second frame", || scene.frames().len() > 1)?;
        run.signal(Signal::SIGTERM);
        scene.ends(&mut run, 0)?;
        wait_gone(&[scene.pid().ok_or("no pid in the log")?])?;
        let newest = scene.store().newest("job").map_err(|e| e.to_string())?;
        damage(&scene.store().path(&newest));
        let mut again = scene.run(&[], ["0", "0", "0"]);
        scene.wait("the resume", || scene.log().contains("resumed from job@"))?;
        let log = scene.log();
        again.signal(Signal::SIGTERM);
        scene.ends(&mut again, 0)?;
        match log.contains(&format!("skipped {newest}")) && !log.contains(&format!("resumed from {newest} ")) {
            true => Ok(()),
            false => Err("the damaged frame was not skipped".to_owned()),
        }
    });
}

/// Flips a byte in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_signal_takes_a_last_frame_and_the_next_run_resumes_there() {
    scenario(|scene| {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let seen = scene.numbers().len();
            let mut run = scene.run(&[], ["0", "0", "0"]);
            scene.wait("some numbers", || scene.numbers().len() > seen + 5)?;
            run.signal(signal);
            scene.ends(&mut run, 0)?;
            wait_gone(&[scene.pid().ok_or("no pid in the log")?])?;
        }
        let numbers = scene.numbers();
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        // The program ended at the very instant of each frame: nothing is lost, nothing done twice.
        match numbers == expected && scene.frames() == [1, 2, 3] {
            true => Ok(()),
            false => Err(format!("numbers {numbers:?}, frames {:?}", scene.frames())),
        }
    });
}

#[test]
fn a_crash_is_resumed_from_the_newest_frame() {
    scenario(|scene| {
        let mut run = scene.run(&["--every", "150ms"], ["60", "40", "0"]);
        scene.wait("the crash", || scene.log().contains("killed by signal 6"))?;
        File::create(scene.path("out.calm")).map_err(|e| e.to_string())?;
        scene.ends(&mut run, 0)?;
        scene.counted(60)
    });
}

#[test]
fn attempts_are_bounded_and_the_status_is_the_programs() {
    scenario(|scene| {
        let mut run = scene.run(&["--attempts", "2"], ["3", "0", "7"]);
        scene.ends(&mut run, 7)?;
        match scene.numbers() == [1, 2, 3, 1, 2, 3, 1, 2, 3] && scene.log().contains("given up after 2 attempts") {
            true => Ok(()),
            false => Err(format!("numbers {:?}", scene.numbers())),
        }
    });
}

#[test]
fn stop_passes_the_status_on() {
    scenario(|scene| {
        scene.ends(&mut scene.run(&["--on-crash", "stop"], ["2", "0", "9"]), 9)?;
        scene.ends(&mut scene.run(&["--on-crash", "stop"], ["0", "2", "0"]), 128 + 6)
    });
}

#[test]
fn keeps_as_many_frames_as_asked_and_those_of_a_finished_program_on_request() {
    scenario(|scene| {
        let mut run = scene.run(&["--every", "100ms", "--full-every", "1", "--keep", "2", "--keep-frames", "--quiet"], ["50", "0", "0"]);
        scene.ends(&mut run, 0)?;
        match (scene.frames().as_slice(), scene.log().as_str()) {
            ([one, other], "") if *one > 1 && *other == one + 1 => Ok(()),
            (frames, _) => Err(format!("frames {frames:?}")),
        }
    });
}

#[test]
fn keeps_what_the_newest_frames_build_upon_and_no_more() {
    scenario(|scene| {
        let mut run = scene.run(&["--every", "100ms", "--full-every", "3", "--keep", "2", "--keep-frames", "--quiet"], ["80", "0", "0"]);
        scene.ends(&mut run, 0)?;
        let frames = scene.frames();
        scene.store().newest_intact("job").map_err(|e| e.to_string()).and_then(|found| match found.skipped.is_empty() {
            // At most a full frame, and before it a whole chain of which the last is one of the two.
            true if frames[0] > 1 && (2..=4).contains(&frames.len()) => Ok(()),
            _ => Err(format!("frames {frames:?}, {} of them not intact", found.skipped.len())),
        })
    });
}

#[test]
fn a_failed_checkpoint_is_one_line_and_the_program_goes_on() {
    scenario(|scene| {
        let mut run = scene.run(&["--every", "100ms"], ["60", "0", "0"]);
        scene.wait("a frame", || !scene.frames().is_empty())?;
        // A file where the directory was: no frame can be written any more.
        let dir = scene.path("store/job");
        fs::rename(&dir, scene.path("aside")).and_then(|()| fs::write(&dir, "")).map_err(|e| e.to_string())?;
        scene.wait("the failure", || scene.log().contains("no frame this time: "))?;
        fs::remove_file(&dir).and_then(|()| fs::rename(scene.path("aside"), &dir)).map_err(|e| e.to_string())?;
        scene.ends(&mut run, 0)?;
        scene.counted(60)
    });
}

#[test]
fn a_command_that_does_not_start_and_a_bad_store_are_said_at_once() {
    let scene = Scene::new();
    let run = |store: &str, command: &str| {
        let out = Command::new(env!("CARGO_BIN_EXE_stillframe")).args(["run", "--name", "job", "--store", store, "--", command]).output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (status, words) = run(&scene.path("store").display().to_string(), "/nonexistent/program");
    assert!(status == Some(1) && words.contains("cannot start /nonexistent/program"), "{words}");
    let (status, words) = run("/proc/store", "true");
    assert!(status == Some(1) && words.lines().count() == 1, "{words}");
}

#[test]
fn a_second_signal_ends_the_program_too() {
    scenario(|scene| {
        let mut run = scene.run(&[], ["0", "0", "0"]);
        scene.wait("some numbers", || scene.numbers().len() > 3)?;
        let pid = scene.pid().ok_or("no pid in the log")?;
        // Held by another tracer, the program can neither be frozen nor does it end by SIGTERM in its stop.
        use stillframe::sys::ptrace;
        ptrace::seize(pid, 0).and_then(|()| ptrace::interrupt(pid)).and_then(|()| ptrace::wait(pid, true)).map_err(|e| e.to_string())?;
        run.signal(Signal::SIGTERM);
        scene.wait("the failure of the last frame", || scene.log().contains("no last frame"))?;
        std::thread::sleep(Duration::from_millis(50));
        run.signal(Signal::SIGTERM);
        scene.ends(&mut run, 128 + 15)?;
        // Our wait for the tracee buries it.
        while !matches!(ptrace::wait(pid, true), Ok(Some(ptrace::Event::Gone(_))) | Err(_)) {}
        wait_gone(&[pid])
    });
}
