//! Members of etcd for a test: started, and ended when dropped.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use stillframe::cluster::state::{etcd::Etcd, State};

/// A member that runs.
pub struct Member(pub Child);

impl Drop for Member {
    fn drop(&mut self) {
        // Both fail only if it has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where a member is to run.
pub struct Place<'a> {
    pub name: &'a str,
    pub dir: &'a Path,
    /// A network namespace by its name; none: ours.
    pub netns: Option<&'a str>,
    pub ip: &'a str,
    pub client: u16,
    pub peer: u16,
}

impl Place<'_> {
    pub fn client_url(&self) -> String {
        format!("http://{}:{}", self.ip, self.client)
    }

    pub fn peer_url(&self) -> String {
        format!("http://{}:{}", self.ip, self.peer)
    }

    /// `cluster` lists all members as NAME=PEER-URL.
    pub fn start(&self, cluster: &str, state: &str, heartbeat_ms: u32, election_ms: u32) -> Member {
        let log = File::create(self.dir.join(format!("{}.log", self.name))).unwrap();
        let mut command = match self.netns {
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns, "etcd"]);
                command
            }
            None => Command::new("etcd"),
        };
        let (client, peer, data) = (self.client_url(), self.peer_url(), self.dir.join(self.name));
        command.args(["--name", self.name, "--data-dir"]).arg(data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", cluster, "--initial-cluster-state", state, "--initial-cluster-token", "stillframe-test"]);
        command.args(["--heartbeat-interval", &heartbeat_ms.to_string(), "--election-timeout", &election_ms.to_string()]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Member(command.spawn().expect("etcd is not installed; tests/run installs what the tests need"))
    }
}

/// Waits until a majority answers.
pub fn wait_ready(state: &Etcd) {
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(e) = state.range("ready") {
        assert!(Instant::now() < end, "etcd does not become ready: {e}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
