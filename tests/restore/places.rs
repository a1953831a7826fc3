//! Where a second instance runs: namespaces of its own, another clock, a terminal's or a script's foreground.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use nix::sys::signal::{kill, SigSet, Signal};
use nix::unistd::Pid;
use stillframe::sys::children::start_clean;

use crate::common::{poll_until, wait_bounded, wait_ended};
use crate::counter::{end, Bench};

fn namespace(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string()
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Restores isolated and detached; the pid as seen from here.
fn isolated(bench: &Bench, name: &str, more: &[&str]) -> i32 {
    let (ok, text) = bench.stillframe(&[&["restore", name, "--detach", "--isolate"], more].concat());
    assert!(ok, "{text}");
    let pid = text.lines().find_map(|line| line.parse().ok());
    pid.unwrap_or_else(|| panic!("no process id printed: {text}"))
}

#[test]
fn an_isolated_instance_runs_beside_the_original_with_the_same_pid() {
    let bench = Bench::start();
    bench.checkpoint(&[]);
    let counted = bench.lines().len();
    // The original lives on: only a pid namespace of its own gives the second instance the same pid.
    let pid = isolated(&bench, "f", &[]);
    let outer = pid.to_string();
    for kind in ["pid", "mnt", "uts", "ipc", "net"] {
        assert_ne!(namespace(&outer, kind), namespace("self", kind), "{kind}");
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let row = status.lines().find(|line| line.starts_with("NSpid:")).unwrap();
    assert!(row.ends_with(&format!("\t{}", bench.pid())), "{row}");
    bench.wait_lines(counted + 10);
    signal(pid, Signal::SIGKILL);
    wait_ended(pid).unwrap();
}

#[test]
fn a_frame_of_an_isolated_instance_restores_too() {
    let mut bench = Bench::start();
    bench.freeze(&[]);
    let first = isolated(&bench, "f", &["--netns", "host"]);
    assert_eq!(namespace(&first.to_string(), "net"), namespace("self", "net"));
    let (ok, text) = bench.stillframe(&["checkpoint", &first.to_string(), "--name", "g", "--then", "kill"]);
    assert!(ok, "{text}");
    wait_ended(first).unwrap();
    let counted = bench.lines().len();
    let second = isolated(&bench, "g", &[]);
    bench.wait_lines(counted + 5);
    signal(second, Signal::SIGKILL);
    wait_ended(second).unwrap();
}

#[test]
fn a_named_network_namespace_is_entered() {
    let mut bench = Bench::start();
    bench.freeze(&[]);
    let mut holder = Command::new("unshare").args(["--net", "sleep", "60"]).stdin(Stdio::null()).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    let ours = namespace("self", "net");
    poll_until(|| fs::read_link(&path).ok().filter(|link| link.display().to_string() != ours)).unwrap();
    let pid = isolated(&bench, "f", &["--netns", &path]);
    assert_eq!(namespace(&pid.to_string(), "net"), namespace(&holder.id().to_string(), "net"));
    signal(pid, Signal::SIGKILL);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let (ok, text) = bench.stillframe(&["restore", "f", "--isolate", "--netns", "/nowhere"]);
    assert!(!ok && text.contains("/nowhere"), "{text}");
}

#[test]
fn in_the_foreground_signals_go_through_and_the_status_comes_back() {
    for more in [&[][..], &["--isolate"]] {
        let mut bench = Bench::start();
        bench.freeze(&[]);
        let counted = bench.lines().len();
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillframe"));
        command.args(["restore", "f", "--foreground", "--store"]).arg(bench.path("store")).args(more).stdin(Stdio::null());
        let mut restorer = start_clean(&mut command, SigSet::empty()).spawn().unwrap();
        bench.wait_lines(counted + 5);
        signal(restorer.id() as i32, Signal::SIGTERM);
        assert_eq!(wait_bounded(&mut restorer).unwrap().code(), Some(128 + Signal::SIGTERM as i32), "{more:?}");
    }
}

#[test]
fn standard_streams_that_led_outside_are_connected_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let stillframe = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillframe"));
        command.env("STILLFRAME_STORE", &store);
        command
    };
    let mut command = Command::new("sh");
    command.args(["-c", "n=5; read line; echo $line $n; exit 3"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = start_clean(&mut command, SigSet::empty()).spawn().unwrap();
    poll_until(|| fs::read_to_string(format!("/proc/{}/syscall", shell.id())).ok().filter(|call| call.starts_with("0 0x0 "))).unwrap();
    let taken = stillframe().args(["checkpoint", &shell.id().to_string(), "--name", "f", "--then", "kill"]).output().unwrap();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    shell.wait().unwrap();
    let mut restorer = stillframe().args(["restore", "f", "--foreground", "--to-stdio"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    restorer.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let out = restorer.wait_with_output().unwrap();
    assert_eq!((String::from_utf8_lossy(&out.stdout).as_ref(), out.status.code()), ("hello 5\n", Some(3)));
}

#[test]
fn monotonic_time_does_not_jump_back_on_a_machine_that_booted_later() {
    let mut bench = Bench::start();
    bench.freeze(&[]);
    let frame = bench.path("store/f/00000001.frame");
    // A frame of a machine that has been up for much longer.
    let manifest = String::from_utf8(stillframe::image::FrameReader::open(&frame).unwrap().manifest().to_vec()).unwrap();
    let digits: String = manifest.split_once("\"monotonic_ns\":").unwrap().1.chars().take_while(char::is_ascii_digit).collect();
    crate::files::rewrite(&frame, &format!("\"monotonic_ns\":{digits}"), &format!("\"monotonic_ns\":9{digits}"));
    let (ok, text) = bench.stillframe(&["restore", "f", "--detach"]);
    assert!(ok && text.contains("time namespace"), "{text}");
    assert_ne!(namespace(&bench.pid().to_string(), "time"), namespace("self", "time"));
    let offsets = fs::read_to_string(format!("/proc/{}/timens_offsets", bench.pid())).unwrap();
    let seconds: i64 = offsets.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(seconds > digits.parse::<i64>().unwrap() / 1_000_000_000, "{offsets}");
    end(bench.pid());
}

#[test]
fn an_id_in_use_is_named_with_its_user() {
    let bench = Bench::start();
    bench.checkpoint(&[]);
    let (ok, text) = bench.stillframe(&["restore", "f", "--detach"]);
    assert!(!ok && text.contains(&format!("pid {} is in use by \"counter\"", bench.pid())) && text.contains("--isolate"), "{text}");
    let counted = bench.lines().len();
    bench.wait_lines(counted + 3);
}

#[test]
fn a_restored_hook_runs_before_the_instance_and_a_failing_one_ends_it() {
    let mut bench = Bench::start();
    bench.freeze(&[]);
    let counted = bench.lines().len();
    let (ok, text) = bench.stillframe(&["restore", "f", "--detach", "--hook", "restored=exit 7"]);
    assert!(!ok && text.contains("restored hook"), "{text}");
    poll_until(|| (!std::path::Path::new(&format!("/proc/{}", bench.pid())).exists()).then_some(())).expect("something of it lives");
    assert_eq!(bench.lines().len(), counted, "it ran in spite of its hook");
    let log = bench.path("hook");
    let hook = format!("restored=echo $STILLFRAME_EVENT $STILLFRAME_PID > {}", log.display());
    bench.resume(&["--hook", &hook]);
    assert_eq!(fs::read_to_string(&log).unwrap(), format!("restored {}\n", bench.pid()));
}
