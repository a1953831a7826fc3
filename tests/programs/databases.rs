//! redis-server with a live writer; sqlite in the middle of a transaction.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::kit::net::{free_port, Redis};
use crate::kit::{eventually, need, Stage};
use crate::{both_ways, Way};

const KEYS: u64 = 1_000_000;

/// A client that increments a counter as fast as the server answers, on one connection.
struct Writer {
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl Writer {
    fn start(port: u16) -> Writer {
        let (answered, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, ended) = (answered.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut client = Redis::connect(port)?;
            while !ended.load(Ordering::SeqCst) {
                seen.store(client.number("INCR counter")?, Ordering::SeqCst);
            }
            Ok(())
        });
        Writer { answered, stop, thread }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Waits for `more` answers, which shows that the connection lives.
    fn goes_on(&self, more: u64) -> u64 {
        let from = self.answered();
        eventually("the writer's next answers", || (self.answered() >= from + more).then(|| self.answered()))
    }

    fn stop(self) -> std::io::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn redis_command(port: u16) -> Command {
    let mut command = Command::new(need("redis-server"));
    command.args(["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--enable-debug-command", "local", "--io-threads", "3"]);
    command
}

fn redis_keeps_every_answered_write(stage: &Stage, way: Way) {
    let port = free_port();
    let mut live = stage.start(&mut redis_command(port));
    let mut client = Redis::await_server(port);
    client.ask(&format!("DEBUG POPULATE {KEYS} key 32")).unwrap();
    let writer = Writer::start(port);
    let before = writer.goes_on(100);
    let report = stage.checkpoint(live.pid(), &[]);
    let after = writer.goes_on(100);
    live.assert_alive();
    writer.stop().expect("the original's client saw nothing of the checkpoint");
    eprintln!("redis: {report:?}");
    drop(client);
    live.kill();
    way.restore(stage, &report.frame, &[]);
    check_redis(port, before, after);
}

fn check_redis(port: u16, before: u64, after: u64) {
    let mut client = Redis::await_server(port);
    let counter = client.number("GET counter").unwrap();
    assert!((before..=after).contains(&counter), "counter {counter} is not between {before} and {after}");
    assert_eq!(client.number("DBSIZE").unwrap(), KEYS + 1);
    for key in (0..KEYS).step_by(9973) {
        assert!(client.ask(&format!("GET key:{key}")).unwrap().starts_with(&format!("value:{key}")), "key:{key}");
    }
    // The clients of the frame's instant were reset: only the one that asks is left.
    eventually("the old clients to be dropped", || client.ask("INFO clients").unwrap().contains("connected_clients:1\r").then_some(()));
    // A writer that connects again goes on where the frame left the counter.
    let writer = Writer::start(port);
    assert!(writer.goes_on(100) > counter);
    writer.goes_on(100);
    writer.stop().unwrap();
}

#[test]
fn redis_saves_by_itself_after_a_restore() {
    let stage = Stage::new();
    let port = free_port();
    let live = stage.start(&mut redis_command(port));
    Redis::await_server(port).ask("SET name frame").unwrap();
    let report = stage.checkpoint(live.pid(), &[]);
    live.kill();
    Way::SamePids.restore(&stage, &report.frame, &[]);
    let mut client = Redis::await_server(port);
    client.ask("BGSAVE").unwrap();
    eventually("the background save", || client.ask("INFO persistence").unwrap().contains("rdb_bgsave_in_progress:0").then_some(()));
    assert!(client.ask("INFO persistence").unwrap().contains("rdb_last_bgsave_status:ok"));
    assert!(stage.read("dump.rdb").is_some_and(|dump| dump.contains("name")));
}

const TRANSACTION: &str = r#"
import os, sqlite3, time
db = sqlite3.connect("data.db", isolation_level=None)
db.execute("PRAGMA cache_size = 10")
db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, v BLOB)")
db.execute("INSERT INTO t VALUES (0, 'committed')")
db.execute("BEGIN")
for n in range(1, 5001):
    db.execute("INSERT INTO t VALUES (?, ?)", (n, os.urandom(100)))
open("ready", "w").write("1")
while not os.path.exists("go"):
    time.sleep(0.005)
n = 5001
while os.path.exists("more"):
    db.execute("INSERT INTO t VALUES (?, ?)", (n, os.urandom(100)))
    n += 1
    os.unlink("more")
db.execute("COMMIT")
rows = db.execute("SELECT count(*) FROM t").fetchone()[0]
check = db.execute("PRAGMA integrity_check").fetchone()[0]
open("result.new", "w").write(f"{rows} {check}")
os.rename("result.new", "result")
time.sleep(600)
"#;

/// The original commits one row more before it dies; the frame's own state of the database has to come back.
fn sqlite_commits_a_transaction_across_the_frame(stage: &Stage, way: Way) {
    let script = stage.write("transaction.py", TRANSACTION);
    let live = stage.start(Command::new(need("python3")).arg(script));
    stage.await_file("ready");
    let report = stage.checkpoint(live.pid(), &["--save-files"]);
    stage.write("more", "");
    stage.write("go", "1");
    assert_eq!(stage.await_file("result"), "5002 ok", "the original");
    live.kill();
    std::fs::remove_file(stage.work("result")).unwrap();
    way.restore(stage, &report.frame, &["--files", "saved"]);
    assert_eq!(stage.await_file("result"), "5001 ok", "restored");
    let mut sqlite = Command::new(need("sqlite3"));
    let rows = sqlite.arg(stage.work("data.db")).arg("SELECT max(n) FROM t; PRAGMA integrity_check;").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&rows.stdout), "5000\nok\n", "{}", String::from_utf8_lossy(&rows.stderr));
}

both_ways! { redis_keeps_every_answered_write sqlite_commits_a_transaction_across_the_frame }
