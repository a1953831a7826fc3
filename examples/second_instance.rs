//! Frames a shell program while it runs, kills it, and brings it back in namespaces of its own, where it goes on counting.
//!
//! The program keeps a number and a sum in shell variables, so nothing outside its memory knows where it was. It writes each
//! step to a log, which shows whether the second instance went on from the frame or started again at 1. Needs root.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{geteuid, Pid};
use stillframe::checkpoint::{checkpoint, Options};
use stillframe::hooks::Hooks;
use stillframe::isolate::Network;
use stillframe::resource::fd::CaptureOptions;
use stillframe::restore::launch::{launch, Launched, Place};
use stillframe::restore::{Loaded, Options as RestoreOptions};
use stillframe::store::{DirStore, FrameRef};

const PROGRAM: &str = "n=0 sum=0
while :; do
    n=$((n + 1)) sum=$((sum + n))
    echo \"$n $sum\" >>numbers.log
    sleep 0.02
done";

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    if !geteuid().is_root() {
        eprintln!("second_instance needs root: only root may give a process its old id and make namespaces");
        return ExitCode::FAILURE;
    }
    match tempfile::tempdir().map_err(Into::into).and_then(|dir| show(dir.path())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("second_instance: {e}");
            ExitCode::FAILURE
        }
    }
}

fn show(dir: &Path) -> Outcome<()> {
    let mut first = First(start(dir)?);
    let pid = first.0.id() as i32;
    println!("1. started    process {pid}, which counts in shell variables");
    wait_for_lines(dir, 50)?;

    let store = DirStore::new(dir.join("store"));
    let (frame, at_frame) = take_frame(dir, pid, &store)?;
    wait_for_lines(dir, at_frame + 25)?;
    first.end();
    let at_end = lines(dir)?.len();
    println!("3. killed     the first instance ran on to {at_end} before it was killed");

    let second = Second(bring_back(&store, &frame)?);
    let seen_inside = inner_id(second.0.pid)?;
    println!("4. restored   process {} here, process {seen_inside} in its own pid namespace", second.0.pid);
    wait_for_lines(dir, at_end + 40)?;
    drop(second);
    judge(&lines(dir)?[at_end..], at_frame)
}

fn start(dir: &Path) -> std::io::Result<Child> {
    Command::new("sh").args(["-c", PROGRAM]).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Takes a frame; also says how many lines the program had written at its instant, which a hook counts while all stands still.
fn take_frame(dir: &Path, pid: i32, store: &DirStore) -> Outcome<(FrameRef, usize)> {
    let (log, count) = (dir.join("numbers.log"), dir.join("at-frame"));
    let hook = format!("frozen=wc -l <{} >{}", log.display(), count.display()).parse()?;
    let options = Options {
        name: Some("counter".to_owned()),
        hooks: Hooks(vec![hook]),
        // Whoever started us may have left descriptors open that lead to other programs.
        descriptors: CaptureOptions { external_close: true, ..CaptureOptions::default() },
        ..Options::default()
    };
    let report = checkpoint(pid, store, &options)?;
    let at_frame = fs::read_to_string(count)?.trim().parse()?;
    let (kib, ms) = (report.bytes / 1024, report.pause_ns as f64 / 1e6);
    println!("2. framed     {} at number {at_frame}: {} processes, {kib} KiB, stood still for {ms:.1} ms, counting included", report.frame, report.processes);
    Ok((report.frame, at_frame))
}

fn bring_back(store: &DirStore, frame: &FrameRef) -> Outcome<Launched> {
    let loaded = Loaded::open(&store.path(frame))?;
    let place = Place { isolate: Some(Network::New), detach: true };
    Ok(launch(&loaded, &RestoreOptions::default(), &place)?)
}

/// The second instance must say the number after the frame's first, then every next one, each with its right sum.
fn judge(second: &[String], at_frame: usize) -> Outcome<()> {
    for (line, n) in second.iter().zip(at_frame + 1..) {
        let wanted = format!("{n} {}", n * (n + 1) / 2);
        if *line != wanted {
            return Err(format!("the second instance wrote {line:?} instead of {wanted:?}").into());
        }
    }
    let (Some(first), Some(last)) = (second.first(), second.last()) else { return Err("the second instance wrote nothing".into()) };
    println!("5. went on    first line {first:?}, last line {last:?}, no number missing, every sum right");
    Ok(())
}

fn lines(dir: &Path) -> std::io::Result<Vec<String>> {
    match fs::read_to_string(dir.join("numbers.log")) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        text => Ok(text?.lines().map(str::to_owned).collect()),
    }
}

fn wait_for_lines(dir: &Path, wanted: usize) -> Outcome<()> {
    let give_up = Instant::now() + Duration::from_secs(60);
    while lines(dir)?.len() < wanted {
        if Instant::now() > give_up {
            return Err(format!("the program wrote {} lines in a minute, not {wanted}", lines(dir)?.len()).into());
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// What a process is called in the innermost pid namespace it lives in.
fn inner_id(pid: i32) -> Outcome<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    Ok(ids.split_whitespace().last().unwrap_or("?").to_owned())
}

/// The first instance, which ends with us.
struct First(Child);

impl First {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.end();
    }
}

/// The second instance; when its init ends, so does all in its pid namespace.
struct Second(Launched);

impl Drop for Second {
    fn drop(&mut self) {
        let init = Pid::from_raw(self.0.helper);
        let _ = kill(init, Signal::SIGKILL);
        let _ = waitpid(init, None);
    }
}
