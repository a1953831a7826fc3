//! The OCF resource agent, as a cluster manager calls it. Needs root and python3.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const SUCCESS: i32 = 0;
const UNIMPLEMENTED: i32 = 3;
const CONFIGURED: i32 = 6;
const NOT_RUNNING: i32 = 7;
const BOUND: Duration = Duration::from_secs(60);

/// Counts to a file.
const COUNTER: &str = "import sys, time\nn = 0\nwhile True:\n    n += 1\n    print(n, file=open(sys.argv[1], 'a'))\n    time.sleep(0.02)\n";

/// One resource.
struct Resource {
    dir: TempDir,
    name: String,
}

impl Resource {
    fn new() -> Resource {
        Resource { dir: tempfile::tempdir().unwrap(), name: format!("ocf{}", std::process::id()) }
    }

    /// An action; exit status and output.
    fn act(&self, action: &str, parameters: &[(&str, &str)]) -> (i32, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cluster/stillframe-ocf");
        let bin = Path::new(env!("CARGO_BIN_EXE_stillframe")).parent().unwrap();
        let mut command = Command::new("sh");
        command.arg(script).arg(action).env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())).stdin(Stdio::null());
        command.envs(parameters.iter().map(|(name, value)| (format!("OCF_RESKEY_{name}"), value)));
        let out = command.output().unwrap();
        (out.status.code().unwrap_or(-1), String::from_utf8(out.stdout).unwrap())
    }

    /// An action with all parameters; its exit status.
    fn does(&self, action: &str) -> i32 {
        let store = self.dir.path().join("store");
        let (source, count) = (self.dir.path().join("counter.py"), self.count());
        fs::write(&source, COUNTER).unwrap();
        let program = format!("python3 {} {}", source.display(), count.display());
        self.act(action, &[("name", &self.name), ("command", &program), ("store", store.to_str().unwrap()), ("every", "1s")]).0
    }

    fn count(&self) -> PathBuf {
        self.dir.path().join("count")
    }

    fn counted(&self) -> Vec<u64> {
        fs::read_to_string(self.count()).unwrap_or_default().lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Waits for `more` numbers.
    fn counts(&self, more: usize) {
        let (before, end) = (self.counted().len(), Instant::now() + BOUND);
        while self.counted().len() < before + more {
            assert!(Instant::now() < end, "it does not count");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn pid(&self) -> i32 {
        fs::read_to_string(format!("/run/stillframe-{}.pid", self.name)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Resource {
    fn drop(&mut self) {
        self.does("stop");
    }
}

#[test]
fn it_says_what_it_is_and_what_it_lacks() {
    let resource = Resource::new();
    let (status, text) = resource.act("meta-data", &[]);
    assert_eq!(status, SUCCESS);
    for what in ["<resource-agent name=\"program\"", "<parameter name=\"command\" required=\"1\">", "<action name=\"monitor\"", "</resource-agent>"] {
        assert!(text.contains(what), "{what}: {text}");
    }
    assert_eq!(resource.act("validate-all", &[]).0, CONFIGURED);
    assert_eq!(resource.act("validate-all", &[("name", "x")]).0, CONFIGURED);
    assert_eq!(resource.act("validate-all", &[("name", "x"), ("command", "true")]).0, SUCCESS);
    assert_eq!(resource.act("start", &[("command", "true")]).0, CONFIGURED);
    assert_eq!(resource.act("promote", &[]).0, UNIMPLEMENTED);
}

#[test]
fn it_starts_watches_stops_and_resumes() {
    let resource = Resource::new();
    assert_eq!(resource.does("monitor"), NOT_RUNNING);
    assert_eq!(resource.does("stop"), SUCCESS, "what does not run is stopped");
    assert_eq!(resource.does("start"), SUCCESS);
    assert_eq!(resource.does("monitor"), SUCCESS);
    let first = resource.pid();
    assert_eq!(resource.does("start"), SUCCESS, "twice is no error");
    assert_eq!(resource.pid(), first);
    resource.counts(20);
    assert_eq!(resource.does("stop"), SUCCESS);
    assert_eq!(resource.does("monitor"), NOT_RUNNING);
    let last = resource.counted().len();
    assert_eq!(resource.does("start"), SUCCESS);
    resource.counts(5);
    let numbers = resource.counted();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "it went on from its last frame, at {last}: {numbers:?}");
    // A supervisor that dies takes its program with it, and is found out.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(resource.pid()), nix::sys::signal::Signal::SIGKILL).unwrap();
    let end = Instant::now() + BOUND;
    while resource.does("monitor") != NOT_RUNNING {
        assert!(Instant::now() < end, "it is dead");
    }
}
