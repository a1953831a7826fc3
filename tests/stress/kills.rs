//! The checkpointer is killed at any instant: the target must not notice, and nothing may be left behind.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::kit::{build, ps, rounds, stillframe, Live, Report, Stage, BOUND};
use crate::Dice;

/// When to kill, from the start of the checkpointer.
enum Moment {
    /// After a fixed time.
    After(Duration),
    /// After the target is first seen to be traced.
    AfterTheFreeze(Duration),
}

fn spawn(stage: &Stage, pid: i32) -> Child {
    let mut command = stillframe();
    command.args(["checkpoint", &pid.to_string(), "--name", "frame", "--store"]).arg(stage.store());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Spins: a sleep is too coarse for windows of microseconds.
fn spin_until(end: Instant, mut over: impl FnMut() -> bool) {
    while Instant::now() < end && !over() {
        std::hint::spin_loop();
    }
}

/// Kills a checkpointer at the moment; false if it was done before.
fn kill_at(stage: &Stage, pid: i32, moment: &Moment) -> bool {
    let mut checkpointer = spawn(stage, pid);
    let delay = match moment {
        Moment::After(delay) => *delay,
        Moment::AfterTheFreeze(delay) => {
            let traced = || ps::status(pid, "TracerPid").is_some_and(|tracer| tracer != "0");
            spin_until(Instant::now() + Duration::from_secs(5), traced);
            *delay
        }
    };
    spin_until(Instant::now() + delay, || false);
    checkpointer.kill().unwrap();
    !checkpointer.wait().unwrap().success()
}

/// A third of the kills early, a third around the freeze, a third anywhere.
fn moments(count: usize, whole: Duration, pause: Duration) -> Vec<Moment> {
    let mut dice = Dice(1);
    let mut up_to = |most: Duration| Duration::from_nanos(dice.below(most.as_nanos() as u64));
    let one = |i| match i % 3 {
        0 => Moment::After(up_to(Duration::from_millis(15))),
        1 => Moment::AfterTheFreeze(up_to(pause * 3 / 2)),
        _ => Moment::After(up_to(whole)),
    };
    (0..count).map(one).collect()
}

/// Nothing of the checkpointer is left: no child, no twin elsewhere, no tracer.
fn assert_alone(stage: &Stage, live: &Live<'_>) {
    let end = Instant::now() + BOUND;
    loop {
        let tracer = ps::status(live.pid(), "TracerPid");
        let (ours, children) = (stage.members(&[]), ps::children(live.pid()));
        if tracer.as_deref() == Some("0") && ours == [live.pid()] && children.is_empty() {
            return;
        }
        let states: Vec<_> = ours.iter().chain(&children).map(|&pid| (pid, ps::stat(pid))).collect();
        assert!(Instant::now() < end, "left behind: target {}, tracer {tracer:?}, processes {states:?}", live.pid());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How long a checkpoint takes here, and its pause.
fn calibrate(stage: &Stage, pid: i32) -> (Duration, Duration) {
    stage.checkpoint(pid, &[]);
    let begun = Instant::now();
    let Report { pause_ns, .. } = stage.checkpoint(pid, &[]);
    (begun.elapsed(), Duration::from_nanos(pause_ns))
}

#[test]
fn a_killed_checkpointer_does_no_harm() {
    let stage = Stage::new();
    let mut live = stage.start(Command::new(build("stress", "steady")).arg("stops"));
    stage.await_above("beat", 5);
    let (whole, pause) = calibrate(&stage, live.pid());
    let visible = || stage.stored().iter().filter(|path| path.ends_with(".frame")).count();
    let frames = visible();
    let (mut killed, mut done) = (0, 0);
    for moment in moments(rounds(60, 1000), whole, pause) {
        match kill_at(&stage, live.pid(), &moment) {
            true => killed += 1,
            false => done += 1,
        }
        assert_alone(&stage, &live);
        let beat = stage.number("beat").unwrap();
        stage.await_above("beat", beat);
        live.assert_alive();
    }
    eprintln!("{killed} checkpointers killed, {done} were done before; a checkpoint takes {whole:?}, its pause {pause:?}");
    // No tracer can hide these from the grave; one that lives must (see the next test).
    eprintln!("{} times epoll_wait said EINTR after the death of a checkpointer", stage.await_file("interrupted"));
    assert!(killed > done, "the kills come too late");
    // One that was killed may have committed just before.
    assert!(visible() >= frames + done, "frames were lost");
    let report = stage.checkpoint(live.pid(), &[]);
    assert!(!stage.stored().iter().any(|path| path.contains(".partial")), "leftovers of killed writers are swept");
    let beat = stage.number("beat").unwrap();
    live.kill();
    stage.restore(&report.frame, &[]);
    stage.await_above("beat", beat + 20);
}

#[test]
fn repeated_checkpoints_disturb_no_wait() {
    let stage = Stage::new();
    let mut live = stage.start(&mut Command::new(build("stress", "steady")));
    stage.await_above("beat", 5);
    for _ in 0..rounds(30, 300) {
        stage.checkpoint(live.pid(), &[]);
        stage.await_above("beat", stage.number("beat").unwrap());
        live.assert_alive();
    }
    assert_alone(&stage, &live);
}
