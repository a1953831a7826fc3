//! What is promised while a snapshot is in flight.

use std::os::fd::AsFd;
use std::sync::mpsc::{channel, Sender};
use std::sync::Mutex;
use std::time::Duration;

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use stillframe::error::Kind;
use stillframe::region::{Builder, InFlight, Info, Level, Method, Session, Snapshot};

use super::{builder, fill, holds, LONG};

const COUNT: usize = 1 << 18;

/// A session whose snapshots stay in flight until the sender is dropped.
pub fn held_up(builder: Builder) -> (Session, Sender<()>) {
    let (release, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let wait = move |info: &Info| {
        if info.level == Level::Local {
            let _ = gate.lock().unwrap().recv();
        }
    };
    (builder.on_progress(wait).open().unwrap(), release)
}

#[test]
fn a_second_snapshot_in_flight_is_refused() {
    let store = tempfile::tempdir().unwrap();
    let (session, release) = held_up(builder(store.path()));
    let first = session.snapshot(&1).unwrap();
    assert_eq!(session.snapshot(&2).unwrap_err().kind(), Kind::Busy);
    drop(release);
    first.wait(Level::Stored, LONG).unwrap();
    session.snapshot(&3).unwrap().wait(Level::Stored, LONG).unwrap();
}

#[test]
fn a_second_snapshot_in_flight_is_skipped() {
    let store = tempfile::tempdir().unwrap();
    let (session, release) = held_up(builder(store.path()).in_flight(InFlight::Skip));
    let first = session.snapshot(&1).unwrap();
    let skipped = session.snapshot(&2).unwrap();
    assert!(skipped.is_skipped() && !first.is_skipped());
    assert_eq!(skipped.wait(Level::Stored, LONG).unwrap_err().kind(), Kind::Busy);
    drop(release);
    first.wait(Level::Stored, LONG).unwrap();
}

#[test]
fn a_second_snapshot_in_flight_is_frozen_at_once_and_queued() {
    let store = tempfile::tempdir().unwrap();
    let (session, release) = held_up(builder(store.path()).in_flight(InFlight::Queue(1)));
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    let first = session.snapshot(&1).unwrap();
    fill(&mut region, 2);
    let second = session.snapshot(&2).unwrap();
    region.fill(0);
    assert_eq!(session.snapshot(&3).unwrap_err().kind(), Kind::Busy);
    drop(release);
    let frames = [first, second].map(|ticket| ticket.wait(Level::Stored, LONG).unwrap().frame.unwrap());
    for (frame, seed) in frames.iter().zip([1, 2]) {
        assert!(holds(&Snapshot::open(store.path(), "test", frame.seq()).unwrap().read::<u64>("numbers").unwrap(), seed));
    }
}

#[test]
fn a_ticket_can_be_watched_timed_out_and_cancelled() {
    let store = tempfile::tempdir().unwrap();
    let (session, release) = held_up(builder(store.path()));
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    let ticket = session.snapshot(&()).unwrap();
    assert!(ticket.wait(Level::Frozen, Duration::ZERO).unwrap().frame.is_none());
    assert_eq!(ticket.wait(Level::Stored, Duration::ZERO).unwrap_err().kind(), Kind::TimedOut);
    ticket.cancel();
    drop(release);
    let mut watched = [PollFd::new(ticket.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut watched, PollTimeout::from(60_000u16)).unwrap(), 1);
    assert_eq!(ticket.wait(Level::Stored, LONG).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(session.take_failure().unwrap().kind(), Kind::Cancelled);
    assert!(session.versions().unwrap().is_empty());
    // The next one is whole.
    session.snapshot(&()).unwrap().wait(Level::Stored, LONG).unwrap();
    assert!(holds(&Snapshot::newest(store.path(), "test").unwrap().read::<u64>("numbers").unwrap(), 1));
}

#[test]
fn a_snapshot_is_due_by_the_clock_and_the_end_by_the_time_limit() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).every(Duration::from_millis(300)).time_limit(Duration::from_secs(2)).open().unwrap();
    assert!(!session.due() && !session.should_exit());
    std::thread::sleep(Duration::from_millis(400));
    assert!(session.due());
    session.snapshot(&()).unwrap().wait(Level::Stored, LONG).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(session.due() && session.should_exit());
}

#[test]
fn what_is_in_flight_is_stored_when_ticket_region_and_session_are_dropped_at_once() {
    for method in [Method::Fork, Method::WriteProtect, Method::Copy] {
        let store = tempfile::tempdir().unwrap();
        let session = builder(store.path()).method(method).open().unwrap();
        let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
        fill(&mut region, 1);
        drop(session.snapshot(&1).unwrap());
        drop(region);
        drop(session);
        assert!(holds(&Snapshot::newest(store.path(), "test").unwrap().read::<u64>("numbers").unwrap(), 1), "{method:?}");
    }
}

#[test]
fn who_waits_for_a_check_is_told_when_the_session_closes_first() {
    let store = tempfile::tempdir().unwrap();
    let (session, release) = held_up(builder(store.path()));
    let ticket = session.snapshot(&1).unwrap();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| session.close());
        // The order to end is in the queue before the one to check; the snapshot itself is stored.
        std::thread::sleep(Duration::from_secs(1));
        let waiting = scope.spawn(|| ticket.wait(Level::Verified, Duration::MAX));
        std::thread::sleep(Duration::from_millis(300));
        drop(release);
        closing.join().unwrap().unwrap();
        assert!(waiting.join().unwrap().unwrap_err().to_string().contains("closed before"));
    });
    assert_eq!(ticket.wait(Level::Stored, LONG).unwrap().level, Level::Stored);
    assert_eq!(ticket.wait(Level::Verified, LONG).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn threads_take_snapshots_of_one_session_in_turn() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).in_flight(InFlight::Queue(2)).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", COUNT).unwrap();
    fill(&mut region, 1);
    let taken: usize = std::thread::scope(|scope| {
        let takers: Vec<_> = (0..4u64)
            .map(|thread| {
                let session = &session;
                scope.spawn(move || {
                    let one = |round| match session.snapshot(&(thread, round)) {
                        Ok(ticket) => ticket.wait(Level::Stored, LONG).map(|_| 1).unwrap(),
                        Err(e) => {
                            assert_eq!(e.kind(), Kind::Busy);
                            0
                        }
                    };
                    (0..10u64).map(one).sum::<usize>()
                })
            })
            .collect();
        takers.into_iter().map(|taker| taker.join().unwrap()).sum()
    });
    let versions = session.versions().unwrap();
    assert!(taken >= 10 && versions.len() == taken && versions.iter().all(|version| version.problem.is_none()), "{taken}");
    assert!(holds(&Snapshot::newest(store.path(), "test").unwrap().read::<u64>("numbers").unwrap(), 1));
}
