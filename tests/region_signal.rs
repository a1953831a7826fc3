//! Threads stopped by a signal for the instant of a snapshot; in a process of its own, because it stops all of them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use stillframe::error::Kind;
use stillframe::region::{Foreign, Level, Method, Quiesce, Session, Snapshot};

const LONG: Duration = Duration::from_secs(120);

#[test]
fn a_signal_stops_threads_in_the_middle_of_their_work() {
    let store = tempfile::tempdir().unwrap();
    let session = Session::builder("test").store(store.path()).quiesce(Quiesce::Signal).open().unwrap();
    // Never freed: should this test fail, its thread goes on.
    let counts = vec![0u64; 64].leak();
    // SAFETY: it is never freed, and is written by atomics.
    let foreign = unsafe { Foreign::new(counts.as_mut_ptr().cast(), 512) };
    session.register("numbers", foreign).unwrap();
    let (at, stop) = (counts.as_mut_ptr() as usize, Arc::new(AtomicBool::new(false)));
    let writer = {
        let stop = stop.clone();
        // All numbers go up in turn: at any instant they are equal, but for those of the round under way.
        std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {
            for n in 0..64 {
                // SAFETY: it is never freed; all of its accesses are atomic.
                unsafe { &*((at + n * 8) as *const AtomicU64) }.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    for _ in 0..10 {
        session.snapshot(&()).unwrap().wait(Level::Stored, LONG).unwrap();
        let seen = Snapshot::newest(store.path(), "test").unwrap().read::<u64>("numbers").unwrap();
        let step = seen.windows(2).position(|pair| pair[0] != pair[1]);
        let even = |numbers: &[u64]| numbers.windows(2).all(|pair| pair[0] == pair[1]);
        assert!(step.is_none_or(|step| even(&seen[..=step]) && even(&seen[step + 1..]) && seen[step] == seen[step + 1] + 1), "{seen:?}");
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    drop(session);
    let wrong = Session::builder("test").store(store.path()).quiesce(Quiesce::Signal).method(Method::Copy).open().unwrap_err();
    assert_eq!(wrong.kind(), Kind::Usage);
}
