//! What a session brings back, and to whom.

use stillframe::error::Kind;
use stillframe::region::{Foreign, Level, Resume, Session, Snapshot};

use super::{builder, fill, holds, LONG};

const COUNT: usize = 300_000;

#[test]
fn regions_and_state_come_back_bit_for_bit() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).open().unwrap();
    assert!(session.resumed().is_none());
    let mut big = session.alloc::<u64>("big", COUNT).unwrap();
    let mut small = session.alloc::<f32>("small", 3).unwrap();
    assert!(big.iter().all(|&number| number == 0));
    fill(&mut big, 1);
    small.copy_from_slice(&[0.1, f32::NAN, -0.0]);
    let state = (0.1f64 + 0.2, "two".to_owned(), u64::MAX);
    let info = session.snapshot(&state).unwrap().wait(Level::Verified, LONG).unwrap();
    assert_eq!((info.level, info.frame.unwrap().to_string().as_str()), (Level::Verified, "test@1"));
    assert_eq!(info.bytes, COUNT as u64 * 8 + 12);
    drop((big, small));
    session.close().unwrap();

    let session = builder(store.path()).open().unwrap();
    assert_eq!(session.state::<(f64, String, u64)>().unwrap(), Some(state));
    let big = session.alloc::<u64>("big", COUNT).unwrap();
    let small = session.alloc::<f32>("small", 3).unwrap();
    assert!(holds(&big, 1));
    assert_eq!(small.iter().map(|number| number.to_bits()).collect::<Vec<_>>(), [0.1, f32::NAN, -0.0].map(f32::to_bits));
    assert_eq!(session.alloc::<u8>("other", 10).unwrap().iter().sum::<u8>(), 0);
}

#[test]
fn a_snapshot_holds_the_instant_while_the_program_goes_on() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", 4 << 20).unwrap();
    fill(&mut region, 1);
    let ticket = session.snapshot(&1).unwrap();
    fill(&mut region, 2);
    ticket.wait(Level::Stored, LONG).unwrap();
    let snapshot = Snapshot::newest(store.path(), "test").unwrap();
    assert!(holds(&snapshot.read::<u64>("numbers").unwrap(), 1));
    let mut bytes = [0; 8];
    snapshot.read_at("numbers", 8, &mut bytes).unwrap();
    assert_eq!(u64::from_ne_bytes(bytes), super::noise(1).nth(1).unwrap());
    assert_eq!(snapshot.read_at("numbers", (32 << 20) - 7, &mut bytes).unwrap_err().kind(), Kind::Usage);
    assert_eq!(snapshot.read::<u8>("others").unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn memory_of_the_programs_own_is_kept_and_put_back() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).open().unwrap();
    let mut numbers = vec![0u64; COUNT];
    fill(&mut numbers, 3);
    let foreign = |numbers: &mut Vec<u64>| {
        let bytes: &mut [u8] = stillframe::region::bytemuck::cast_slice_mut(numbers);
        // SAFETY: the vector lives to the end of the test and is not touched by other threads.
        unsafe { Foreign::new(bytes[5..].as_mut_ptr(), bytes.len() - 11) }
    };
    session.register("numbers", foreign(&mut numbers)).unwrap();
    assert_eq!(session.register("again", foreign(&mut numbers)).unwrap_err().kind(), Kind::Usage);
    assert!(!session.load("numbers").unwrap());
    session.exclude("numbers", 100, 50).unwrap();
    session.snapshot(&()).unwrap().wait(Level::Stored, LONG).unwrap();
    session.unregister("numbers").unwrap();
    assert_eq!(session.unregister("numbers").unwrap_err().kind(), Kind::NotFound);
    session.close().unwrap();

    let session = builder(store.path()).open().unwrap();
    let before = numbers.clone();
    numbers.fill(0);
    session.register("numbers", foreign(&mut numbers)).unwrap();
    assert!(session.load("numbers").unwrap());
    let (was, is): (&[u8], &[u8]) = (stillframe::region::bytemuck::cast_slice(&before), stillframe::region::bytemuck::cast_slice(&numbers));
    let kept = |at: usize| (5..is.len() - 6).contains(&at) && !(105..155).contains(&at);
    assert!(is.iter().enumerate().all(|(at, &byte)| byte == if kept(at) { was[at] } else { 0 }));
}

#[test]
fn a_session_can_start_anew_or_from_an_older_version_and_sizes_must_agree() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).increments(0).label("run", "7").open().unwrap();
    let mut region = session.alloc::<u64>("numbers", 1000).unwrap();
    for seed in 1..=3 {
        fill(&mut region, seed);
        session.snapshot_labelled(b"", &[("seed", &seed.to_string())]).unwrap().wait(Level::Stored, LONG).unwrap();
    }
    let labels: Vec<_> = session.versions().unwrap().into_iter().map(|version| (version.labels["run"].clone(), version.labels["seed"].clone())).collect();
    assert_eq!(labels, [1, 2, 3].map(|seed| ("7".to_owned(), seed.to_string())));
    drop(region);
    session.close().unwrap();
    let first = |resume| builder(store.path()).resume(resume).open().unwrap().alloc::<u64>("numbers", 1000).unwrap().to_vec();
    assert!(holds(&first(Resume::Version(2)), 2) && holds(&first(Resume::Newest), 3) && first(Resume::Fresh)[0] == 0);
    let session = builder(store.path()).open().unwrap();
    assert_eq!(session.alloc::<u64>("numbers", 999).unwrap_err().kind(), Kind::Usage);
    assert_eq!(session.retain(1).unwrap().len(), 2);
}

#[test]
fn several_programs_start_from_one_snapshot_while_its_writer_goes_on() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).open().unwrap();
    let mut region = session.alloc::<u64>("numbers", 1000).unwrap();
    fill(&mut region, 1);
    let frame = session.snapshot(&1).unwrap().wait(Level::Stored, LONG).unwrap().frame.unwrap();
    let copies: Vec<_> = ["left", "right"].map(|name| Session::builder(name).store(store.path()).resume(Resume::From(frame.clone())).open().unwrap()).into();
    for (seed, copy) in (2..).zip(&copies) {
        let mut region = copy.alloc::<u64>("numbers", 1000).unwrap();
        assert!(holds(&region, 1) && copy.resumed().unwrap().frame() == &frame);
        fill(&mut region, seed);
        copy.snapshot(&seed).unwrap().wait(Level::Stored, LONG).unwrap();
    }
    drop(copies);
    for (name, seed) in [("test", 1), ("left", 2), ("right", 3)] {
        assert!(holds(&Snapshot::newest(store.path(), name).unwrap().read::<u64>("numbers").unwrap(), seed), "{name}");
    }
}

#[test]
fn regions_lie_at_the_same_addresses_if_asked_for() {
    let store = tempfile::tempdir().unwrap();
    let open = || builder(store.path()).same_addresses(true).open().unwrap();
    let session = open();
    let region = session.alloc::<u64>("numbers", COUNT).unwrap();
    let address = region.as_ptr();
    session.snapshot(&()).unwrap();
    session.close().unwrap();
    assert_eq!(open().alloc::<u64>("numbers", COUNT).unwrap_err().kind(), Kind::Refused);
    drop(region);
    // Other tests of this process may have taken the place meanwhile; the cache of the examples has a process of its own.
    match open().alloc::<u64>("numbers", COUNT) {
        Ok(region) => assert_eq!(region.as_ptr(), address),
        Err(e) => assert_eq!(e.kind(), Kind::Refused),
    }
}

#[test]
fn a_name_belongs_to_one_session_and_its_holder_is_named() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).open().unwrap();
    let refused = builder(store.path()).open().unwrap_err();
    assert!(refused.kind() == Kind::Held && refused.to_string().contains("this program has"), "{refused}");
    Session::builder("other").store(store.path()).open().unwrap();
    drop(session);
    builder(store.path()).open().unwrap();
}

#[test]
fn the_callbacks_are_called_in_turn_and_may_object() {
    use std::sync::{Arc, Mutex};
    let store = tempfile::tempdir().unwrap();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let calls = calls.clone();
        move || calls.lock().unwrap().push(what)
    };
    let (quiesce, resume, progress, restored) = (note("quiesce"), note("resume"), note("progress"), note("restored"));
    let objects = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let veto = objects.clone();
    let session = builder(store.path())
        .on_quiesce(move || {
            quiesce();
            if veto.load(std::sync::atomic::Ordering::Relaxed) { Err("not now".to_owned()) } else { Ok(()) }
        })
        .on_resume(resume)
        .on_progress(move |_| progress())
        .open()
        .unwrap();
    session.snapshot(&()).unwrap().wait(Level::Stored, LONG).unwrap();
    objects.store(true, std::sync::atomic::Ordering::Relaxed);
    let refused = session.snapshot(&()).unwrap_err();
    assert!(refused.kind() == Kind::Cancelled && refused.to_string().contains("not now"));
    session.close().unwrap();
    builder(store.path()).on_restored(move |snapshot| if snapshot.frame().seq() == 1 { restored() }).open().unwrap();
    assert_eq!(*calls.lock().unwrap(), ["quiesce", "resume", "progress", "progress", "quiesce", "restored"]);
}
