//! Pipelines of small processes, and python with threads and subprocesses.

use std::process::Command;

use crate::kit::{need, Stage};
use crate::{both_ways, Way};

const PIPELINE: &str = r#"
seq 1 200000 | while read -r n; do
    [ $((n % 1000)) = 0 ] && echo "$n" > progress
    echo $((n * 3))
done | tac | sort -n | awk '{ sum += $1; if ($1 != last + 3) gaps++; last = $1 } END { printf "%d %.0f %d\n", NR, sum, gaps }' |
{ read -r line; echo "$line" > .result.new; mv .result.new result; }
sleep 600
"#;
/// Lines, their sum, gaps.
const SUM: &str = "200000 60000300000 0\n";

fn a_pipeline_loses_and_repeats_nothing(stage: &Stage, way: Way) {
    let script = stage.write("pipeline.sh", PIPELINE);
    let live = stage.start(Command::new(need("bash")).arg(script));
    stage.await_above("progress", 20_000);
    let report = stage.checkpoint(live.pid(), &[]);
    assert!(stage.read("result").is_none(), "the frame should be from the middle of the work");
    assert_eq!(stage.await_file("result"), SUM, "the original");
    live.kill();
    std::fs::remove_file(stage.work("result")).unwrap();
    stage.hold_place("progress");
    way.restore(stage, &report.frame, &[]);
    assert_eq!(stage.await_file("result"), SUM, "restored");
}

const WORKERS: &str = r#"
import os, subprocess, sys, threading, time, traceback

ECHO = "import sys\nfor line in sys.stdin:\n    sys.stdout.write(line)\n    sys.stdout.flush()\n"
counts = [0] * 4
lock = threading.Lock()
shared = {"sum": 0, "steps": 0}

def put(name, text):
    with open("." + name, "w") as f:
        f.write(text)
    os.rename("." + name, name)

def guard(body, i):
    try:
        body(i)
    except BaseException:
        put("failed", traceback.format_exc())
        os._exit(1)

def talker(i):
    child = subprocess.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while True:
        text = f"{i} {counts[i]}\n"
        child.stdin.write(text)
        child.stdin.flush()
        assert child.stdout.readline() == text
        counts[i] += 1
        with lock:
            shared["sum"] += i + 1
            shared["steps"] += 1

def spawner(i):
    while True:
        done = subprocess.run(["sh", "-c", f"exit {counts[i] % 7}"])
        assert done.returncode == counts[i] % 7, done
        counts[i] += 1
        with lock:
            shared["sum"] += i + 1
            shared["steps"] += 1

for i in range(4):
    threading.Thread(target=guard, args=(talker if i < 3 else spawner, i), daemon=True).start()
while True:
    time.sleep(0.01)
    with lock:
        now = sum(counts)
        # A thread may be between its count and the shared one.
        if not 0 <= now - shared["steps"] <= 4:
            put("failed", f"{counts} {shared}")
            os._exit(1)
        for i in range(4):
            put(f"beat{i}", str(counts[i]))
"#;

fn beats(stage: &Stage, more: u64) -> Vec<u64> {
    (0..4).map(|i| format!("beat{i}")).map(|name| stage.await_above(&name, stage.number(&name).unwrap_or(0) + more)).collect()
}

fn python_goes_on_with_threads_and_subprocesses(stage: &Stage, way: Way) {
    let script = stage.write("workers.py", WORKERS);
    let mut live = stage.start(Command::new(need("python3")).arg(script));
    let before = beats(stage, 20);
    let report = stage.checkpoint(live.pid(), &[]);
    beats(stage, 20);
    live.assert_alive();
    live.kill();
    let after: Vec<u64> = (0..4).map(|i| stage.number(&format!("beat{i}")).unwrap()).collect();
    for i in 0..4 {
        std::fs::remove_file(stage.work(&format!("beat{i}"))).unwrap();
        stage.hold_place(&format!(".beat{i}"));
    }
    way.restore(stage, &report.frame, &[]);
    let first: Vec<u64> = (0..4).map(|i| stage.await_above(&format!("beat{i}"), 0)).collect();
    assert!(first.iter().zip(&before).all(|(first, before)| first >= before), "{first:?} is before {before:?}");
    for (i, after) in after.iter().enumerate() {
        stage.await_above(&format!("beat{i}"), after + 20);
    }
}

/// A frame of a restored instance is as good as one of the original.
#[test]
fn a_restored_pipeline_is_framed_again() {
    let stage = Stage::new();
    let script = stage.write("pipeline.sh", PIPELINE);
    let live = stage.start(Command::new(need("bash")).arg(script));
    stage.await_above("progress", 20_000);
    let mut frame = stage.checkpoint(live.pid(), &[]).frame;
    live.kill();
    for _ in 0..3 {
        let from = stage.number("progress").unwrap_or(0);
        stage.hold_place("progress");
        let root = Way::SamePids.restore(&stage, &frame, &[]);
        stage.await_above("progress", from + 5_000);
        frame = stage.checkpoint(root, &[]).frame;
        stage.kill_all();
    }
    stage.hold_place("progress");
    Way::SamePids.restore(&stage, &frame, &[]);
    assert_eq!(stage.await_file("result"), SUM);
}

both_ways! { a_pipeline_loses_and_repeats_nothing python_goes_on_with_threads_and_subprocesses }
