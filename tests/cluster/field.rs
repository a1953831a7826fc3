//! Three servers in network namespaces of their own, joined by veths and a bridge, each with a member of etcd and an agent.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use stillframe::cluster::state::{etcd::Etcd, State};
use stillframe::cluster::view::{Frame, Keys, Mirror, View};
use tempfile::TempDir;

use super::checker::{self, Commit, Life};
use super::etcd::{Member, Place};
use super::ps;

/// How long any step may take before it counts as hung.
pub const BOUND: Duration = Duration::from_secs(60);
pub const NODES: [&str; 3] = ["a", "b", "c"];
/// The address of the service.
pub const ADDRESS: &str = "10.77.0.100";
pub const PORT: u16 = 7000;

/// The ticker on all servers, framed five times a second.
pub const TICKER: &str = r#"
[[service]]
name = "tick"
command = ["TICKER", "LOG", "7000"]
nodes = ["a", "b", { node = "c", role = "backup" }]
address = "10.77.0.100/24"
every = "200ms"
monitor = [{ tcp = 7000, every = "200ms", timeout = "2s", failures = 5 }]
"#;

/// Three agents and three members of etcd are enough for one machine at a time.
static ALONE: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// What a field is to be, besides its three servers.
pub struct Plan<'a> {
    /// `[[service]]` tables; the ticker's path stands for TICKER, its log for LOG, the field's directory for DIR.
    pub services: &'a str,
    /// More lines for every node, whose name stands for THISNODE.
    pub node_lines: &'a str,
    /// A `[timings]` table.
    pub timings: &'a str,
    /// etcd's heartbeat and election timeout, in milliseconds.
    pub pace: (u32, u32),
    /// Environment of the agents, as NAME=VALUE.
    pub env: &'a [&'a str],
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Plan { services: "", node_lines: "", timings: "", pace: (50, 500), env: &[] }
    }
}

pub struct Field {
    pub dir: TempDir,
    prefix: String,
    timings: String,
    pace: (u32, u32),
    env: Vec<String>,
    members: Vec<Option<Member>>,
    agents: Vec<Option<Child>>,
    pub state: Arc<Etcd>,
    pub keys: Keys,
    commits: Arc<Mutex<Vec<Commit>>>,
    over: Arc<AtomicBool>,
    ticker: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

pub fn ip(args: &str) -> bool {
    Command::new("ip").args(args.split(' ')).stderr(Stdio::null()).status().expect("ip is not installed; tests/run installs what the tests need").success()
}

fn must(args: &str) {
    assert!(ip(args), "ip {args}");
}

pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + BOUND;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "still waiting after {BOUND:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn now_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000
}

/// When a frame was safe on storage, by the boot-time clock: a watcher on a busy machine may hear of it much later.
fn taken_ms(frame: &Frame) -> u64 {
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    now_ms().saturating_sub(wall.saturating_sub(frame.taken_ns) / 1_000_000)
}

fn build_ticker(dir: &Path) -> PathBuf {
    let (source, program) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/ticker.c"), dir.join("ticker"));
    let done = Command::new("cc").args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-o"]).args([&program, &source]).output().expect("a C compiler named cc is needed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    program
}

impl Field {
    /// Servers, etcd and agents, with the services that `services` describes.
    pub fn new(services: &str) -> Field {
        Field::of(&Plan { services, ..Plan::default() })
    }

    /// The same with more lines for every node.
    pub fn with(services: &str, node_lines: &str) -> Field {
        Field::of(&Plan { services, node_lines, ..Plan::default() })
    }

    /// Servers, etcd and agents by a plan.
    pub fn of(plan: &Plan) -> Field {
        let alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let dir = tempfile::Builder::new().prefix("field-").tempdir().unwrap();
        let prefix = format!("sf{:x}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let endpoints: Vec<String> = (1..=3).map(|n| format!("http://10.77.0.{n}:2379")).collect();
        let state = Arc::new(Etcd::new(&endpoints, Duration::from_secs(5)));
        let ticker = build_ticker(dir.path());
        let (timings, pace, env) = (plan.timings.to_owned(), plan.pace, plan.env.iter().map(|pair| pair.replace("DIR", &dir.path().display().to_string())).collect());
        let mut field = Field { dir, prefix, timings, pace, env, members: Vec::new(), agents: Vec::new(), state, keys: Keys::of("t"), commits: Arc::default(), over: Arc::default(), ticker, _alone: alone };
        field.lay_out();
        fs::write(field.config(), field.text(plan.services, plan.node_lines)).unwrap();
        field.members = (0..3).map(|at| Some(field.start_member(at, "new"))).collect();
        // The test itself looks from the switch.
        let switch = File::open(format!("/run/netns/{}sw", field.prefix)).unwrap();
        nix::sched::setns(&switch, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        super::etcd::wait_ready(&field.state);
        field.follow();
        field.agents = (0..3).map(|_| None).collect();
        (0..3).for_each(|at| field.start_agent(at));
        field
    }

    fn lay_out(&self) {
        let p = &self.prefix;
        for name in ["sw", "a", "b", "c"] {
            must(&format!("netns add {p}{name}"));
            must(&format!("-n {p}{name} link set lo up"));
            must(&format!("-n {p}{name} link add br0 type bridge"));
            must(&format!("-n {p}{name} link set br0 up"));
        }
        must(&format!("-n {p}sw addr add 10.77.0.254/24 dev br0"));
        for (at, node) in NODES.iter().enumerate() {
            must(&format!("-n {p}sw link add to{node} type veth peer name wan netns {p}{node}"));
            must(&format!("-n {p}sw link set to{node} master br0 up"));
            must(&format!("-n {p}{node} link set wan master br0 up"));
            must(&format!("-n {p}{node} addr add 10.77.0.{}/24 dev br0", at + 1));
        }
    }

    /// The network namespace of the switch, where clients and the test itself are.
    pub fn switch(&self) -> String {
        format!("{}sw", self.prefix)
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("cluster.toml")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("ticks")
    }

    pub fn text(&self, services: &str, node_lines: &str) -> String {
        let (dir, mut text) = (self.dir.path().display(), String::new());
        text += &format!("cluster = \"t\"\nstore = \"etcd\"\nendpoints = [\"http://10.77.0.1:2379\", \"http://10.77.0.2:2379\", \"http://10.77.0.3:2379\"]\nframes = \"{dir}/frames\"\n{}\n", self.timings);
        text += &format!("[alerts]\ncommand = \"echo $STILLFRAME_ALERT $STILLFRAME_SERVICE >> {dir}/alerts\"\nnotify = \"echo $STILLFRAME_EVENT $STILLFRAME_NODE >> {dir}/members\"\nwebhook = \"http://10.77.0.254:9000/alerts\"\n");
        for (at, node) in NODES.iter().enumerate() {
            text += &format!("[[node]]\nname = \"{node}\"\nbeats = \"10.77.0.{0}:7400\"\nrest = \"10.77.0.{0}:7480\"\ninterface = \"br0\"\n{1}\n", at + 1, node_lines.replace("THISNODE", node));
        }
        (text + services).replace("TICKER", &self.ticker.display().to_string()).replace("LOG", &self.log().display().to_string()).replace("DIR", &dir.to_string())
    }

    pub fn place(&self, at: usize) -> (String, String) {
        (format!("{}{}", self.prefix, NODES[at]), format!("10.77.0.{}", at + 1))
    }

    pub fn start_member(&self, at: usize, state: &str) -> Member {
        let (netns, ip) = self.place(at);
        let cluster: Vec<String> = (0..3).map(|n| format!("{}=http://10.77.0.{}:2380", NODES[n], n + 1)).collect();
        Place { name: NODES[at], dir: self.dir.path(), netns: Some(&netns), ip: &ip, client: 2379, peer: 2380 }.start(&cluster.join(","), state, self.pace.0, self.pace.1)
    }

    pub fn start_agent(&mut self, at: usize) {
        let log = File::options().create(true).append(true).open(self.dir.path().join(format!("agent-{}", NODES[at]))).unwrap();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}{}", self.prefix, NODES[at])).arg(env!("CARGO_BIN_EXE_stillframe"));
        command.args(["agent", "--node", NODES[at], "--config"]).arg(self.config());
        command.envs(self.env.iter().filter_map(|pair| pair.split_once('=')));
        self.agents[at] = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Writes down when which frame was committed.
    fn follow(&self) {
        let (state, keys, commits, over) = (self.state.clone(), self.keys.clone(), self.commits.clone(), self.over.clone());
        std::thread::spawn(move || {
            let mut after = 0;
            while !over.load(Ordering::Relaxed) {
                let Ok(mut watch) = state.watch(&keys.at("frame", ""), after) else { continue };
                while let Ok(events) = watch.next() {
                    for event in events {
                        after = after.max(event.revision);
                        let frame: Option<Frame> = event.entry.and_then(|entry| serde_json::from_str(&entry.value).ok());
                        commits.lock().unwrap().extend(frame.map(|frame| Commit { at_ms: taken_ms(&frame), token: frame.token, seq: frame.seq }));
                    }
                }
            }
        });
    }

    pub fn view(&self) -> View {
        let snapshot = eventually("the store", || self.state.range(self.keys.prefix()).ok());
        Mirror::of(snapshot).view(&self.keys)
    }

    /// Waits until the service runs; where.
    pub fn running(&self, service: &str) -> String {
        eventually(&format!("{service} runs; {}", self.agent_logs()), || {
            let view = self.view();
            let found = view.services.get(service)?;
            let running = found.phase.as_ref().is_some_and(|phase| phase.state == stillframe::cluster::view::State::Running);
            found.owner.as_ref().filter(|owner| running && found.phase.as_ref().is_some_and(|phase| phase.node == owner.node)).map(|owner| owner.node.clone())
        })
    }

    /// Waits until it runs on this node.
    pub fn runs_on(&self, service: &str, node: &str) {
        eventually(&format!("{service} runs on {node}"), || (self.running(service) == node).then_some(()));
    }

    /// The ticker runs on its first server, has frames, and answers at its address.
    pub fn ready(&self) {
        self.runs_on("tick", "a");
        self.frames(4);
        eventually("an answer", || ask(Duration::from_secs(1)).ok());
    }

    /// Puts the services of a configuration into the cluster.
    pub fn apply(&self, services: &str) -> String {
        let file = self.dir.path().join("applied.toml");
        fs::write(&file, self.text(services, "")).unwrap();
        self.operated(&["apply", file.to_str().unwrap()])
    }

    /// Waits for so many commits more.
    pub fn frames(&self, more: usize) {
        let before = self.commits.lock().unwrap().len();
        eventually("frames", || (self.commits.lock().unwrap().len() >= before + more).then_some(()));
    }

    /// Frames so far.
    pub fn commits(&self) -> Vec<Commit> {
        self.commits.lock().unwrap().clone()
    }

    pub fn ticks(&self) -> Vec<checker::Tick> {
        checker::read(&self.log())
    }

    /// Instances so far.
    pub fn lives(&self) -> usize {
        checker::lives(&self.ticks()).len()
    }

    /// Waits until one more instance than `known` has begun; when it did.
    pub fn another(&self, known: usize) -> u64 {
        eventually("another instance ticks", || checker::lives(&self.ticks()).get(known).map(|life| life.from_ms))
    }

    /// Waits for a tick from now on; how many instances there have been then.
    pub fn still(&self) -> usize {
        let before = self.ticks().len();
        eventually("a tick", || (self.ticks().len() > before + 5).then(|| self.lives()))
    }

    /// Agent, warden and all that runs below them on a node.
    pub fn processes(&self, at: usize) -> Vec<i32> {
        let agent = self.agents[at].as_ref().map(|agent| agent.id() as i32);
        ps::with_descendants(agent.into_iter().collect())
    }

    pub fn agent(&self, at: usize) -> i32 {
        self.agents[at].as_ref().unwrap().id() as i32
    }

    /// The service's process.
    pub fn service(&self) -> i32 {
        let is_ticker = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(&*self.ticker.to_string_lossy())) && ps::alive(*pid);
        eventually("the service's process", || ps::all().into_iter().find(is_ticker))
    }

    pub fn signal(&self, pids: &[i32], signal: Signal) {
        pids.iter().for_each(|&pid| ps::signal(pid, signal));
    }

    /// Kills every process of a node at once and cuts its links; etcd's member dies with it.
    pub fn kill_node(&mut self, at: usize) {
        self.link(at, false);
        ps::kill_at_once(&self.processes(at));
        self.members[at] = None;
        if let Some(mut agent) = self.agents[at].take() {
            let _ = agent.wait();
        }
    }

    pub fn kill_agent(&mut self, at: usize) {
        let mut agent = self.agents[at].take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub fn link(&self, at: usize, up: bool) {
        must(&format!("-n {}sw link set to{} {}", self.prefix, NODES[at], if up { "up" } else { "down" }));
    }

    pub fn member(&mut self, at: usize, member: Option<Member>) {
        self.members[at] = member;
    }

    /// Index of the member that leads.
    pub fn leader(&self) -> usize {
        eventually("a leader", || {
            (0..3).find(|at| {
                let out = Command::new("etcdctl").args(["--endpoints", &format!("http://10.77.0.{}:2379", at + 1), "endpoint", "status", "-w", "json"]).env("ETCDCTL_API", "3").output().unwrap();
                let status: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
                let status = &status[0]["Status"];
                !status["leader"].is_null() && status["leader"] == status["header"]["member_id"]
            })
        })
    }

    /// Makes a member the leader.
    pub fn lead(&self, at: usize) {
        if self.leader() == at {
            return;
        }
        let etcdctl = |args: &[&str]| {
            let endpoints = "10.77.0.1:2379,10.77.0.2:2379,10.77.0.3:2379";
            let out = Command::new("etcdctl").args(["--endpoints", endpoints]).args(args).env("ETCDCTL_API", "3").output().unwrap();
            String::from_utf8(out.stdout).unwrap()
        };
        let members = etcdctl(&["member", "list"]);
        let id = members.lines().find(|line| line.contains(&format!("10.77.0.{}:2379", at + 1))).and_then(|line| line.split(',').next()).expect("a member").to_owned();
        // Only the leader itself can pass its duty on; asked in vain, it is asked again.
        eventually("the leader moves", || {
            etcdctl(&["move-leader", &id]);
            (self.leader() == at).then_some(())
        });
    }

    /// A node that was killed comes back: links, etcd's member, agent.
    pub fn revive(&mut self, at: usize) {
        self.link(at, true);
        self.members[at] = Some(self.start_member(at, "existing"));
        self.start_agent(at);
    }

    /// Waits until every member that runs answers by itself.
    pub fn settle(&self) {
        for at in (0..3).filter(|at| self.members[*at].is_some()) {
            super::etcd::wait_ready(&Etcd::new(&[format!("http://10.77.0.{}:2379", at + 1)], Duration::from_secs(5)));
        }
    }

    /// A command of ours, as an operator gives it.
    pub fn operate(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_stillframe")).args(args).env("STILLFRAME_CLUSTER", self.config()).stdin(Stdio::null()).output().unwrap()
    }

    /// One that must succeed; its output.
    pub fn operated(&self, args: &[&str]) -> String {
        let out = self.operate(args);
        assert!(out.status.success(), "{args:?}: {}{}\n{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr), self.agent_logs());
        String::from_utf8(out.stdout).unwrap()
    }

    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    pub fn agent_logs(&self) -> String {
        NODES.iter().map(|node| format!("--- agent {node}\n{}", self.file(&format!("agent-{node}")))).collect()
    }

    /// Judges all that happened; gives the lives.
    pub fn judge(&self) -> Vec<Life> {
        let ticks = self.ticks();
        let lives = checker::lives(&ticks);
        checker::one_at_a_time(&lives);
        checker::nothing_lost(&lives, &self.commits.lock().unwrap(), &ticks);
        lives
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.agent_logs());
        }
        self.over.store(true, Ordering::Relaxed);
        for at in 0..self.agents.len() {
            let pids = self.processes(at);
            self.signal(&pids, Signal::SIGCONT);
            ps::kill_at_once(&pids);
        }
        self.agents.iter_mut().flatten().for_each(|agent| drop(agent.wait()));
        self.members.clear();
        for name in ["sw", "a", "b", "c"] {
            ip(&format!("netns del {}{name}", self.prefix));
        }
    }
}

/// Asks the service for its number.
pub fn ask(timeout: Duration) -> std::io::Result<u64> {
    ask_with(b"?", timeout)
}

/// The same with a word of its own.
pub fn ask_with(word: &[u8], timeout: Duration) -> std::io::Result<u64> {
    let address: SocketAddr = format!("{ADDRESS}:{PORT}").parse().unwrap();
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    answered(stream, word)
}

/// Asks over a connection that is there.
pub fn answered(mut stream: TcpStream, word: &[u8]) -> std::io::Result<u64> {
    stream.write_all(word)?;
    let mut answer = [0; 32];
    let length = stream.read(&mut answer)?;
    String::from_utf8_lossy(&answer[..length]).trim().parse().map_err(std::io::Error::other)
}
