//! What is promised while a snapshot is in flight.

use std::os::fd::AsFd;
use std::sync::mpsc::{channel, Sender};
use std::sync::Mutex;
use std::time::Duration;

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use stillframe::error::Kind;
use stillframe::region::{Builder, InFlight, Info, Level, Session, Snapshot};

use super::{builder, fill, holds, LONG};

const COUNT: usize = 1 << 18;

/// A session whose snapshots stay in flight until the sender is dropped.
fn held_up(builder: Builder) -> (Session, Sender<()>) {
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
