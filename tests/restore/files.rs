//! Files that a frame depends on, and what else decides whether it may come back: changed code, data files, saved files, the
//! processor; and what a checkpoint does beside the frame: hooks, `--then`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use stillframe::image::{Compression, FrameReader, FrameWriter, Header, Place};

use crate::common::poll_until;
use crate::counter::Bench;

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn code_must_be_there_and_be_the_same() {
    let mut bench = Bench::start();
    bench.freeze(&[]);
    let program = bench.path("counter");
    fs::rename(&program, bench.path("away")).unwrap();
    bench.refused(&[], &["counter", "missing", "--self-contained"]);
    fs::copy(bench.path("away"), &program).unwrap();
    append(&program, b"longer");
    bench.refused(&[], &["counter", "differs", "--allow-changed"]);
    bench.resume(&["--allow-changed"]);
}

#[test]
fn a_self_contained_frame_needs_no_installed_program() {
    let mut bench = Bench::start();
    bench.freeze(&["--self-contained"]);
    fs::remove_file(bench.path("counter")).unwrap();
    bench.resume(&[]);
}

#[test]
fn a_program_replaced_while_it_ran_comes_back_as_it_was() {
    let mut bench = Bench::start();
    fs::write(bench.path("new"), "#!/bin/false\n").unwrap();
    fs::rename(bench.path("new"), bench.path("counter")).unwrap();
    bench.freeze(&[]);
    bench.resume(&[]);
}

#[test]
fn a_data_file_may_grow_but_not_shrink_or_vanish() {
    let mut bench = Bench::start();
    bench.freeze(&[]);
    let data = bench.path("data");
    let content = fs::read(&data).unwrap();
    append(&data, b"0\n");
    bench.refused(&["--strict-files"], &["data", "has grown", "--strict-files"]);
    assert!(bench.resume(&[]).contains("has grown"));
    fs::write(&data, &content[..content.len() - 2]).unwrap();
    bench.refused(&[], &["data", "shorter", "--files saved"]);
    fs::remove_file(&data).unwrap();
    bench.refused(&[], &["data", "missing"]);
}

#[test]
fn saved_files_agree_with_the_memory() {
    let mut bench = Bench::start();
    bench.checkpoint(&["--save-files=*/data"]);
    let after = bench.lines().len();
    bench.wait_lines(after + 10);
    bench.kill();
    fs::set_permissions(bench.path("data"), fs::Permissions::from_mode(0o640)).unwrap();
    let text = bench.resume(&["--files", "saved"]);
    assert!(text.contains("put back"), "{text}");
    let lines = bench.lines();
    assert!(lines.iter().copied().eq(1..=lines.len() as u64), "numbers are missing or come twice: {lines:?}");
    assert_eq!(fs::metadata(bench.path("data")).unwrap().permissions().mode() & 0o777, 0o644);
}

/// The same frame with a word of its manifest replaced.
pub fn rewrite(path: &Path, from: &str, to: &str) {
    let reader = FrameReader::open(path).unwrap();
    let manifest = String::from_utf8(reader.manifest().to_vec()).unwrap().replacen(from, to, 1);
    let copy = path.with_extension("copy");
    let mut writer = FrameWriter::create(File::create(&copy).unwrap(), &copy, &Header::new(None)).unwrap();
    for object in reader.objects().collect::<Vec<_>>() {
        for run in reader.runs(object) {
            if run.place == Place::Zero {
                writer.zero(object, run.offset, run.len, 0).unwrap();
                continue;
            }
            let mut bytes = vec![0; run.len as usize];
            reader.read_at(object, run.offset, &mut bytes).unwrap();
            writer.put(object, run.offset, &bytes, Compression::None).unwrap();
        }
    }
    writer.finish(manifest.as_bytes()).unwrap();
    fs::rename(copy, path).unwrap();
}

#[test]
fn a_processor_that_lacks_a_feature_is_refused_by_its_name() {
    let mut bench = Bench::start();
    bench.freeze(&[]);
    rewrite(&bench.path("store/f/00000001.frame"), "\"cpu_features\":[", "\"cpu_features\":[\"amx_dream\",");
    bench.refused(&[], &["processor", "amx_dream", "--allow-changed"]);
    bench.resume(&["--allow-changed"]);
}

#[test]
fn hooks_run_at_their_events_and_a_failing_one_gives_up() {
    let bench = Bench::start();
    let log = bench.path("hooks");
    let hook = |event: &str| format!("{event}=echo $STILLFRAME_EVENT $STILLFRAME_PID $STILLFRAME_FRAME >> {}", log.display());
    let hooks: Vec<String> = ["committed", "frozen", "resumed"].map(hook).into();
    bench.checkpoint(&hooks.iter().flat_map(|hook| ["--hook", hook]).collect::<Vec<_>>());
    let pid = bench.pid();
    assert_eq!(fs::read_to_string(&log).unwrap(), format!("frozen {pid}\nresumed {pid}\ncommitted {pid} f@1\n"));
    let (ok, text) = bench.stillframe(&["checkpoint", &pid.to_string(), "--name", "f", "--hook", "frozen=exit 7"]);
    assert!(!ok && text.contains("frozen hook") && text.lines().count() == 1, "{text}");
    let counted = bench.lines().len();
    bench.wait_lines(counted + 3);
    assert_eq!(fs::read_dir(bench.path("store/f")).unwrap().filter(|e| e.as_ref().unwrap().path().extension().is_some()).count(), 1);
    let (ok, text) = bench.stillframe(&["checkpoint", &pid.to_string(), "--hook", "thawed=true"]);
    assert!(!ok && text.contains("frozen, resumed, committed or restored"), "{text}");
}

#[test]
fn then_stop_keeps_it_stopped_until_it_is_told_to_go_on() {
    let bench = Bench::start();
    bench.checkpoint(&["--then", "stop"]);
    let state = || fs::read_to_string(format!("/proc/{}/stat", bench.pid())).unwrap().split_whitespace().nth(2).unwrap().to_owned();
    poll_until(|| (state() == "T").then_some(())).expect("it is not stopped");
    let counted = bench.lines().len();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(bench.pid()), nix::sys::signal::Signal::SIGCONT).unwrap();
    bench.wait_lines(counted + 3);
}

#[test]
fn frames_are_for_their_owner_alone() {
    let bench = Bench::start();
    bench.checkpoint(&[]);
    let mode = fs::metadata(bench.path("store/f/00000001.frame")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
