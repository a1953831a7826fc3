//! What the command line says of, and to, a linked program.

use std::process::{Command, Stdio};
use std::time::Duration;

use stillframe::region::Level;
use stillframe::store::DirStore;

use super::{builder, LONG};

fn stillframe(store: &std::path::Path, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillframe"));
    let out = command.args(args).arg("--store").arg(store).stdin(Stdio::null()).output().unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

#[test]
fn a_program_is_asked_for_a_snapshot_and_to_exit() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).open().unwrap();
    let _region = session.alloc::<u8>("bytes", 5000).unwrap();
    assert!(!session.due());
    for (then, exit) in [("run", false), ("kill", true)] {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| stillframe(store.path(), &["checkpoint", "--name", "test", "--then", then]));
            while !session.due() {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(session.should_exit(), exit);
            session.snapshot(&()).unwrap().wait(Level::Stored, LONG).unwrap();
            let (ok, said) = asked.join().unwrap();
            assert!(ok && said.contains("test@") && said.contains("asked process"), "{said}");
        });
    }
    assert!(!session.due());
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| stillframe(store.path(), &["checkpoint", "--name", "test"]));
        while !session.due() {
            std::thread::sleep(Duration::from_millis(5));
        }
        session.close().unwrap();
        let (ok, said) = asked.join().unwrap();
        assert!(!ok && said.contains("ended, or closed its session"), "{said}");
    });
    let (ok, said) = stillframe(store.path(), &["checkpoint", "--name", "test"]);
    assert!(!ok && said.contains("no program has a session named test"), "{said}");
}

#[test]
fn snapshots_are_listed_inspected_and_verified_but_not_restored() {
    let store = tempfile::tempdir().unwrap();
    let session = builder(store.path()).label("phase", "two").open().unwrap();
    let _region = session.alloc::<u8>("bytes", 5000).unwrap();
    session.snapshot(&7).unwrap().wait(Level::Stored, LONG).unwrap();
    let of = |args: &[&str]| stillframe(store.path(), args);
    assert!(matches!(of(&["list"]), (true, said) if said.contains("test@1") && said.contains("intact")), "{:?}", of(&["list"]));
    assert!(matches!(of(&["verify", "test"]), (true, said) if said.contains("ok")));
    let (ok, said) = of(&["inspect", "test"]);
    assert!(ok && said.contains("bytes") && said.contains("4.9 KiB") && said.contains("phase=two"), "{said}");
    let (ok, said) = of(&["restore", "test"]);
    assert!(!ok && said.contains("holds regions of a linked program"), "{said}");
}

/// A second program is told who holds the name, and takes over when that dies.
#[test]
fn a_name_is_held_by_a_program_and_free_when_it_dies() {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--example", "heat"]).status().unwrap();
    assert!(built.success());
    let heat = std::path::Path::new(env!("CARGO_BIN_EXE_stillframe")).with_file_name("examples").join("heat");
    let store = tempfile::tempdir().unwrap();
    let mut child = Command::new(heat).arg(store.path()).args(["100000000", "100"]).stdout(Stdio::null()).spawn().unwrap();
    let open = || stillframe::region::Session::builder("heat").store(store.path()).open();
    while !matches!(DirStore::new(store.path()).holder("heat"), Ok(Some(_))) {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = open().unwrap_err();
    let held = refused.kind() == stillframe::error::Kind::Held && refused.to_string().contains(&format!("process {} (heat)", child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(held, "{refused}");
    open().unwrap();
}
