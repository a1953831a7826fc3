//! Stores that fail in the middle: one clear line, no half frame, an unharmed target.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::mount::{mount, umount, MsFlags};

use crate::assert_one_line;
use crate::kit::{build, bounded, eventually, need, rounds, stillframe, Live, Stage};

/// 64 MiB that no compression makes smaller.
const BULKY: &str = "
import os, time
data = os.urandom(64 << 20)
n = 0
while True:
    n += 1
    with open('.beat', 'w') as f: f.write(str(n))
    os.rename('.beat', 'beat')
    time.sleep(0.005)
";

fn bulky(stage: &Stage) -> Live<'_> {
    let live = stage.start(Command::new(need("python3")).args(["-c", BULKY]));
    stage.await_above("beat", 2);
    live
}

fn assert_goes_on(stage: &Stage, live: &mut Live<'_>) {
    stage.await_above("beat", stage.number("beat").unwrap() + 5);
    live.assert_alive();
}

/// A small file system in place of the store.
struct SmallStore(PathBuf);

impl SmallStore {
    fn mount(stage: &Stage, options: &str) -> SmallStore {
        mount(Some("tmpfs"), &stage.store(), Some("tmpfs"), MsFlags::empty(), Some(options)).expect("a tmpfs; this test needs root");
        SmallStore(stage.store())
    }
}

impl Drop for SmallStore {
    fn drop(&mut self) {
        umount(&self.0).unwrap();
    }
}

#[test]
fn a_full_store_leaves_no_half_frame() {
    let stage = Stage::new();
    let _small = SmallStore::mount(&stage, "size=4m");
    let mut live = bulky(&stage);
    for _ in 0..rounds(5, 50) {
        let error = stage.try_checkpoint(live.pid(), &[]).expect_err("64 MiB do not fit into 4");
        assert_one_line(&error);
        assert!(error.contains("No space left") && error.contains("another store"), "{error}");
        assert!(stage.stored().iter().all(|path| path.ends_with(".lock")), "{:?}", stage.stored());
        assert_goes_on(&stage, &mut live);
    }
}

#[test]
fn a_store_removed_during_the_transfer() {
    let stage = Stage::new();
    let mut live = bulky(&stage);
    let (mut failed, attempts) = (0, rounds(5, 50));
    for _ in 0..attempts {
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| stage.try_checkpoint(live.pid(), &["--compress", "zstd:5"]));
            eventually("the transfer", || stage.stored().iter().any(|path| path.contains(".partial")).then_some(()));
            fs::remove_dir_all(stage.store()).unwrap();
            if let Err(error) = taking.join().unwrap() {
                assert_one_line(&error);
                assert!(error.contains("removed"), "{error}");
                failed += 1;
            }
        });
        assert!(stage.stored().is_empty(), "{:?}", stage.stored());
        assert_goes_on(&stage, &mut live);
    }
    assert_eq!(failed, attempts, "a frame in a removed store cannot succeed");
    // The store is made anew when it is needed.
    stage.checkpoint(live.pid(), &[]);
}

#[test]
fn a_store_that_cannot_be_written() {
    let stage = Stage::new();
    let mut live = bulky(&stage);
    let file = stage.write("file", "not a directory");
    for store in [file, PathBuf::from("/proc/store")] {
        let mut command = stillframe();
        command.args(["checkpoint", &live.pid().to_string(), "--store"]).arg(&store);
        let error = bounded(&mut command).expect_err("no store can be there");
        assert_one_line(&error);
        assert!(error.contains(&*store.to_string_lossy()), "{error}");
    }
    assert_goes_on(&stage, &mut live);
}

/// Two checkpointers of one target: one may be refused, none may do harm.
#[test]
fn checkpoints_of_one_target_at_once() {
    let stage = Stage::new();
    let mut live = stage.start(&mut Command::new(build("stress", "steady")));
    stage.await_above("beat", 5);
    let taken: usize = std::thread::scope(|scope| {
        let one = || {
            (0..rounds(10, 100)).filter(|_| stage.try_checkpoint(live.pid(), &[]).inspect_err(|e| assert_one_line(e)).is_ok()).count()
        };
        let all: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    eprintln!("{taken} of {} checkpoints succeeded", 3 * rounds(10, 100));
    assert!(taken > 0);
    stage.await_above("beat", stage.number("beat").unwrap() + 5);
    live.assert_alive();
}
