//! The subcommands on frames that build upon others.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::SigSet;
use serde_json::Value;
use stillframe::image::{encode, Chain, Compression, Header, RunInBlock};
use stillframe::store::{DirStore, Store as _};
use stillframe::sys::children::start_clean;
use tempfile::TempDir;

/// A store with a frame `nap@1` of a sleeping program and increments upon it, each upon the one before.
struct Store {
    dir: TempDir,
}

impl Store {
    fn with_chain(links: u64) -> Store {
        let store = Store { dir: tempfile::tempdir().unwrap() };
        let mut command = Command::new("sleep");
        command.arg("1000").current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        // Without what happens to be open here: a pipe of somebody else could not be frozen.
        let mut nap: Child = start_clean(&mut command, SigSet::empty()).spawn().unwrap();
        // Either ends it: the frame, or the failure to take one.
        let taken = store.run(&["checkpoint", &nap.id().to_string(), "--name", "nap", "--then", "kill"]);
        let _ = nap.kill();
        nap.wait().unwrap();
        assert!(taken.status.success(), "{}", text(&taken.stderr));
        (2..=links).for_each(|seq| store.increment(seq - 1));
        store
    }

    /// Commits an increment upon frame `parent`: the same program, and one page more of its own.
    fn increment(&self, parent: u64) {
        let frames = DirStore::new(self.dir.path());
        let chain = Chain::open(&self.frame(parent)).unwrap();
        let pending = frames.begin("nap").unwrap();
        let mut writer = pending.writer(&Header::new(Some(chain.header().id))).unwrap();
        for piece in chain.pieces() {
            writer.parent(piece.object, piece.offset, piece.len, piece.object).unwrap();
        }
        let first = chain.pieces()[0];
        let mut page = [0; 4096];
        chain.read_at(first.object, first.offset, &mut page).unwrap();
        let run = RunInBlock { object: first.object, offset: first.offset, at: 0, len: 4096, generation: 0 };
        writer.append(&encode(&page, Compression::None).unwrap(), &[run]).unwrap();
        let written = writer.finish(chain.manifest()).unwrap();
        frames.commit(pending, &written).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillframe"));
        command.args(args).env("STILLFRAME_STORE", self.dir.path()).stdin(Stdio::null()).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
        assert!(out.status.success() && stderr.is_empty(), "{args:?}: {stdout}{stderr}");
        stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Fails with status 1 and one line that contains `words`, and removes nothing.
    fn fails(&self, args: &[&str], words: &[&str]) {
        let before = self.sizes();
        let out = self.run(args);
        let stderr = text(&out.stderr);
        assert_eq!((out.status.code(), stderr.lines().count()), (Some(1), 1), "{args:?}: {stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{args:?}: {stderr}");
        assert_eq!(self.sizes(), before);
    }

    fn frame(&self, seq: u64) -> PathBuf {
        self.dir.path().join(format!("nap/{seq:08}.frame"))
    }

    fn sizes(&self) -> Vec<(u64, u64)> {
        (1..20).filter_map(|seq| Some((seq, fs::metadata(self.frame(seq)).ok()?.len()))).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn list_and_inspect_show_what_builds_upon_what() {
    let store = Store::with_chain(3);
    let table = store.ok(&["list"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].contains("KIND") && lines[0].contains("IN ALL"), "{table}");
    assert!(lines[1].contains("  full  ") && lines[3].contains("  on nap@2  ") && lines[3].ends_with("intact"), "{table}");
    let all = store.json(&["list", "--json"]);
    let total: u64 = store.sizes().iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(all[2]["chain"], serde_json::json!({ "increment": true, "parent": "nap@2", "frames": 3, "bytes": total }));
    assert_eq!(all[0]["chain"]["increment"], false);
    assert!(store.ok(&["inspect", "nap@1"]).lines().any(|line| line.split_whitespace().eq(["kind", "full"])));
    let shown = store.ok(&["inspect", "nap"]);
    assert!(shown.contains("increment upon 00000002.frame; 3 frames down to 00000001.frame"), "{shown}");
    let facts = store.json(&["inspect", "nap", "--json"]);
    assert_eq!((facts["chain"].as_array().unwrap().len(), facts["chain_bytes"].as_u64()), (3, Some(total)));
    assert_eq!(facts["parent"], store.json(&["inspect", "nap@2", "--json"])["id"]);
}

#[test]
fn a_lost_parent_is_said_by_every_command() {
    let store = Store::with_chain(3);
    fs::rename(store.frame(1), store.dir.path().join("elsewhere")).unwrap();
    let table = store.ok(&["list"]);
    assert!(table.lines().nth(1).unwrap().contains("  on a lost frame  "), "{table}");
    assert!(table.lines().skip(1).all(|line| line.contains("which nap@2 builds upon, is not in the store")), "{table}");
    for command in ["restore", "inspect", "verify", "compact"] {
        store.fails(&[command, "nap@3"], &["00000002.frame builds upon frame ", "which is not in", "put the file of that frame back"]);
    }
}

#[test]
fn a_chain_of_more_frames_than_may_be_open_is_said() {
    let store = Store::with_chain(40);
    let limited = format!("ulimit -n 20 && exec {} compact nap --quiet", env!("CARGO_BIN_EXE_stillframe"));
    let out = Command::new("sh").args(["-c", &limited]).env("STILLFRAME_STORE", store.dir.path()).output().unwrap();
    let stderr = text(&out.stderr);
    assert!(!out.status.success() && stderr.lines().count() == 1, "{stderr}");
    assert!(stderr.contains("builds upon another, with more others than files may be open (raise ulimit -n, then compact it)"), "{stderr}");
    assert_eq!(store.ok(&["compact", "nap", "--quiet"]), "");
}

#[test]
fn damage_below_is_damage_of_all_above() {
    let store = Store::with_chain(3);
    assert!(store.ok(&["verify", "nap"]).contains(" of 3 frames"));
    assert_eq!(store.json(&["verify", "nap", "--json"])["frames"], 3);
    let mut bytes = fs::read(store.frame(1)).unwrap();
    bytes[200] ^= 1;
    fs::write(store.frame(1), &bytes).unwrap();
    let out = store.run(&["verify", "--all"]);
    let stderr = text(&out.stderr);
    assert!(out.status.code() == Some(1) && stderr.lines().count() == 3, "{stderr}");
    assert!(stderr.lines().all(|line| line.contains("00000001.frame: block 0")), "{stderr}");
    bytes.truncate(1000);
    fs::write(store.frame(1), &bytes).unwrap();
    let table = store.ok(&["list"]);
    assert!(table.lines().nth(3).unwrap().ends_with("not readable: it builds upon nap@1, which is not readable"), "{table}");
}

#[test]
fn rm_keeps_what_is_needed() {
    let store = Store::with_chain(4);
    store.fails(&["rm", "nap@1"], &["nap@2 builds upon it", "remove nap@2 first", "stillframe compact nap@2"]);
    store.fails(&["rm", "nap@1", "nap@2", "nap@3"], &["nap@4 builds upon it"]);
    assert_eq!(store.ok(&["rm", "nap", "--keep", "1"]), "kept 3 older frames, which newer ones build upon\n");
    assert_eq!(store.ok(&["rm", "nap@3", "nap@4"]), "removed nap@3\nremoved nap@4\n");
    assert_eq!(store.ok(&["rm", "--all", "nap"]), "removed nap@2\nremoved nap@1\n");
    assert!(store.sizes().is_empty());
}

#[test]
fn compact_makes_a_frame_full_and_prunes_on_request() {
    let store = Store::with_chain(4);
    let whole = store.json(&["inspect", "nap@3", "--json"]);
    let said = store.ok(&["compact", "nap@3"]);
    assert!(said.starts_with("nap@3: 3 frames, ") && said.contains(", now one full frame of "), "{said}");
    assert_eq!(store.sizes().len(), 4);
    let full = store.json(&["inspect", "nap@3", "--json"]);
    assert!(full["parent"].is_null() && full["chain"].as_array().unwrap().len() == 1);
    assert_eq!((&full["id"], &full["manifest"]), (&whole["id"], &whole["manifest"]));
    assert_eq!(store.ok(&["verify", "--all"]).lines().count(), 4);
    assert!(store.ok(&["compact", "nap@3", "--prune"]).contains("a full frame already"));
    let said = store.ok(&["compact", store.frame(4).to_str().unwrap(), "--prune"]);
    assert!(said.ends_with("\nremoved nap@3\n"), "{said}");
    assert_eq!(store.ok(&["compact", "nap@2", "--quiet", "--prune"]), "");
    assert_eq!(store.sizes().iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [2, 4]);
    let loose = store.dir.path().join("loose.frame");
    fs::copy(store.frame(4), &loose).unwrap();
    store.fails(&["compact", loose.to_str().unwrap(), "--prune"], &["is not in a store", "without --prune"]);
}

#[test]
fn pruning_leaves_what_others_need() {
    let store = Store::with_chain(2);
    store.increment(1);
    assert!(store.ok(&["compact", "nap@2", "--prune"]).ends_with("kept 1 frame, which other frames build upon\n"));
    assert_eq!(store.sizes().len(), 3);
}

#[test]
fn an_increment_is_restored_as_one_and_so_is_what_it_is_compacted_to() {
    let store = Store::with_chain(3);
    for round in 0..2 {
        let out = store.run(&["restore", "nap", "--isolate", "--detach"]);
        let (pid, stderr) = (text(&out.stdout).trim().parse::<i32>(), text(&out.stderr));
        let pid = pid.unwrap_or_else(|_| panic!("round {round}: {stderr}"));
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "sleep\n");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        store.ok(&["compact", "nap", "--prune", "--quiet"]);
    }
    assert_eq!(store.sizes().len(), 1);
}
