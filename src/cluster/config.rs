//! What operators write: one TOML file for all servers. Errors name the line and the field.

use std::net::{IpAddr, SocketAddr};

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Spanned;

use crate::error::{Error, Kind, Result};

/// A whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the cluster; its keys lie under it.
    pub cluster: String,
    /// Where the state is.
    pub store: Store,
    /// The directory that holds the frames of all services.
    pub frames: PathBuf,
    /// Whether every server sees the same frames there; if not, only the server that took them can resume.
    pub shared: bool,
    /// Timings of leases, elections and beats.
    pub timings: Timings,
    /// Commands run at every alert and at every change of membership.
    pub alerts: Alerts,
    /// The servers.
    pub nodes: Vec<Node>,
    /// What is to run on them.
    pub services: Vec<Service>,
}

/// Where the cluster's state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// Members of etcd by URL.
    Etcd(Vec<String>),
    /// A directory of one machine.
    Local(PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    cluster: Spanned<String>,
    store: Spanned<String>,
    #[serde(default)]
    endpoints: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    path: Option<PathBuf>,
    frames: Spanned<PathBuf>,
    #[serde(default = "yes")]
    shared: bool,
    #[serde(default)]
    timings: Option<Spanned<Timings>>,
    #[serde(default)]
    alerts: Alerts,
    #[serde(default)]
    node: Vec<Spanned<Node>>,
    #[serde(default)]
    service: Vec<Spanned<Service>>,
}

/// Times that depend on each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timings {
    /// A node whose lease was not renewed for that long is dead; whole seconds.
    pub ttl: Time,
    /// etcd's election timeout, as its members are started with.
    pub election: Time,
    /// Time between renewals, and how long one may take.
    pub renew: Time,
    /// Time between two beats.
    pub beat: Time,
    /// Without a beat for that long a node is suspected.
    pub suspect: Time,
    /// How long the next candidate waits for the one before it.
    pub stagger: Time,
}

impl Default for Timings {
    fn default() -> Timings {
        let [ttl, election, renew, beat, suspect, stagger] = [3000, 500, 300, 100, 300, 200].map(Time::ms);
        Timings { ttl, election, renew, beat, suspect, stagger }
    }
}

impl Timings {
    /// How long after the sending of the last acknowledged renewal all must have been let go.
    pub fn deadline(&self) -> Duration {
        self.ttl.0 * 7 / 10
    }

    /// Refuses timings under which a mere election of etcd would shut healthy servers off.
    fn check(&self) -> std::result::Result<(), String> {
        let slack = self.ttl.0 / 10;
        let needed = self.election.0 * 2 + self.renew.0 + slack;
        if self.ttl.0.subsec_nanos() != 0 || self.ttl.0.is_zero() {
            return Err("ttl: must be whole seconds, 1s at least".to_owned());
        }
        if self.renew.0.is_zero() || self.beat.0.is_zero() {
            return Err("renew, beat: must not be zero".to_owned());
        }
        if self.suspect.0 < self.beat.0 * 2 {
            return Err("suspect: must be two beats at least".to_owned());
        }
        if self.deadline() <= needed {
            let (has, needed) = (self.deadline().as_millis(), needed.as_millis());
            return Err(format!("ttl: 0.7 of it is {has} ms, which must be more than 2 elections + renew + a tenth of ttl = {needed} ms, or an election of etcd shuts healthy servers off; raise ttl or shorten election or renew"));
        }
        Ok(())
    }
}

/// A span of time, written as "300ms", "3s", "5m" or "1h".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time(pub Duration);

impl Time {
    /// So many milliseconds.
    pub const fn ms(ms: u64) -> Time {
        Time(Duration::from_millis(ms))
    }

    /// In milliseconds.
    pub fn as_ms(self) -> u64 {
        self.0.as_millis() as u64
    }

    fn parse(text: &str) -> Option<Time> {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(digits);
        let scale = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        Some(Time::ms(number.parse::<u64>().ok()?.checked_mul(scale)?))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Time, D::Error> {
        let text = String::deserialize(from)?;
        Time::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no time; write 300ms, 3s, 5m or 1h")))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{}ms", self.as_ms()))
    }
}

/// An amount of memory, written as "512KiB", "64MiB" or "1GiB".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Size, String> {
        let scaled = [("KiB", 10), ("MiB", 20), ("GiB", 30)].iter().find_map(|(unit, bits)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(1 << bits));
        scaled.map(Size).ok_or_else(|| format!("{text:?} is no amount of memory; write 512KiB, 64MiB or 1GiB"))
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        format!("{}KiB", size.0 >> 10)
    }
}

/// Who is told.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// A command for sh, with STILLFRAME_ALERT, STILLFRAME_NODE, STILLFRAME_SERVICE and STILLFRAME_TEXT set.
    pub command: Option<String>,
    /// A URL (http://) that gets the same as JSON by POST.
    pub webhook: Option<String>,
    /// A command for sh at changes of membership, with STILLFRAME_EVENT (up, leaving, dead) and STILLFRAME_NODE set.
    pub notify: Option<String>,
}

/// A server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// The private address that its beats come from and go to.
    pub beats: SocketAddr,
    /// The private address of its REST interface; none: it has none.
    #[serde(default)]
    pub rest: Option<SocketAddr>,
    /// How much it can host, in units of `weight` of services.
    #[serde(default = "hundred")]
    pub capacity: u32,
    /// The bridge that virtual nodes are joined to, and the interface that addresses of services without one are put on.
    #[serde(default)]
    pub interface: Option<String>,
    /// A command for sh, run by others, that shuts this server off and exits with 0 when that is certain.
    #[serde(default)]
    pub fence: Option<String>,
    /// A command for sh, run by its own agent, that resets it when a critical service failed for good.
    #[serde(default)]
    pub reset: Option<String>,
    /// A watchdog device.
    #[serde(default)]
    pub watchdog: Option<PathBuf>,
    /// Services may fail over to it.
    #[serde(default = "yes")]
    pub allow_failover: bool,
}

/// In which tier a server stands by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// In the order of the list.
    Failover,
    /// After all others.
    Backup,
}

/// A server in the list of a service: its name, or a table with its role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Standby {
    /// NAME, for a failover.
    Name(String),
    /// With its role.
    Full {
        /// Its name.
        node: String,
        /// Its tier.
        role: Role,
    },
}

impl Standby {
    /// Which server.
    pub fn node(&self) -> &str {
        match self {
            Standby::Name(node) | Standby::Full { node, .. } => node,
        }
    }

    /// In which tier.
    pub fn role(&self) -> Role {
        match self {
            Standby::Name(_) => Role::Failover,
            Standby::Full { role, .. } => *role,
        }
    }
}

/// What clients get while a new owner cannot serve yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Meanwhile {
    /// Errors at once: resets, port unreachable, and 503 on `http` ports.
    Reject,
    /// Nothing: packets are dropped until the service is back.
    Hold,
}

/// How a service comes back to the first server of its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failback {
    /// By `stillframe failback`.
    Manual,
    /// By itself, when that server has been up for `failback_delay`.
    Auto,
}

/// A service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name, also of its frames.
    pub name: String,
    /// The program and its arguments, for a start without a frame.
    pub command: Vec<String>,
    /// For a daemon that forks away: the file it writes its process id to.
    #[serde(default)]
    pub pid_file: Option<PathBuf>,
    /// Where it may run; the first is the one it prefers.
    pub nodes: Vec<Standby>,
    /// Its own address with prefix length (10.0.0.9/24); none: a virtual node with a loopback interface only.
    #[serde(default)]
    pub address: Option<Address>,
    /// The gateway of its virtual node.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// A second address that a 503 page names.
    #[serde(default)]
    pub second: Option<String>,
    /// Ports that answer with 503 while it cannot serve.
    #[serde(default)]
    pub http: Vec<u16>,
    /// What clients get while it cannot serve.
    #[serde(default = "reject")]
    pub meanwhile: Meanwhile,
    /// Time from one frame to the next; none: only by hand and at a switchover.
    #[serde(default)]
    pub every: Option<Time>,
    /// A frame is also taken as soon as so much private memory was written since the last one.
    #[serde(default)]
    pub every_written: Option<Size>,
    /// One frame in so many holds all memory, the others what was written since the one before.
    #[serde(default = "ten")]
    pub full_every: u32,
    /// How many frames stay, besides those that they build upon.
    #[serde(default = "three")]
    pub keep: u32,
    /// How much of a server's capacity it takes.
    #[serde(default = "one")]
    pub weight: u32,
    /// Whether it may move to another server at a failure.
    #[serde(default = "yes")]
    pub allow_failover: bool,
    /// How it comes back.
    #[serde(default = "manual")]
    pub failback: Failback,
    /// How long the preferred server must have been up before.
    #[serde(default = "minute")]
    pub failback_delay: Time,
    /// How often in a row it is restarted where it is, before it moves.
    #[serde(default = "two")]
    pub restarts: u32,
    /// Its failure for good resets the server.
    #[serde(default)]
    pub critical: bool,
    /// At most so long may a planned switchover keep it stopped before it is taken back.
    #[serde(default = "ten_seconds")]
    pub switchover_limit: Time,
    /// Probes.
    #[serde(default)]
    pub monitor: Vec<Monitor>,
    /// A command for sh before it starts on a server, with STILLFRAME_EVENT, STILLFRAME_ABOUT (the service) and STILLFRAME_NODE set;
    /// failure keeps it from starting.
    #[serde(default)]
    pub mount: Option<String>,
    /// A command for sh after it has ended on a server.
    #[serde(default)]
    pub unmount: Option<String>,
    /// Whether it is brought back at once, while its memory comes as it is touched; else it waits for all of it.
    #[serde(default = "yes")]
    pub lazy: bool,
    /// Upper limit of its memory in bytes, where the machine has a memory cgroup.
    #[serde(default)]
    pub memory_max: Option<u64>,
}

/// A probe of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Monitor {
    /// Connect to this port of the service's own network.
    #[serde(default)]
    pub tcp: Option<u16>,
    /// GET http://ADDRESS:PORT/PATH must answer with 2xx or 3xx: "PORT/PATH".
    #[serde(default)]
    pub http: Option<String>,
    /// A command for sh in the service's network; 0 is healthy, and 7 (OCF: not running) fails at once.
    #[serde(default)]
    pub script: Option<String>,
    /// Time between two probes.
    #[serde(default = "second")]
    pub every: Time,
    /// How long one may take.
    #[serde(default = "second")]
    pub timeout: Time,
    /// So many failures in a row make the service failed.
    #[serde(default = "three")]
    pub failures: u32,
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The length of the prefix.
    pub prefix: u8,
}

impl Address {
    fn parse(text: &str) -> Option<Address> {
        let (ip, prefix) = text.split_once('/')?;
        let (ip, prefix): (IpAddr, u8) = (ip.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if ip.is_ipv4() { 32 } else { 128 }).then_some(Address { ip, prefix })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Address, D::Error> {
        let text = String::deserialize(from)?;
        Address::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no address with a prefix length, such as 10.0.0.9/24")))
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

fn yes() -> bool {
    true
}
fn one() -> u32 {
    1
}
fn two() -> u32 {
    2
}
fn three() -> u32 {
    3
}
fn ten() -> u32 {
    10
}
fn hundred() -> u32 {
    100
}
fn second() -> Time {
    Time::ms(1000)
}
fn ten_seconds() -> Time {
    Time::ms(10_000)
}
fn minute() -> Time {
    Time::ms(60_000)
}
fn reject() -> Meanwhile {
    Meanwhile::Reject
}
fn manual() -> Failback {
    Failback::Manual
}

mod check;

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config> {
        let unread = |e| Error::io(format!("cannot read the cluster's configuration {}; name it with --config or STILLFRAME_CLUSTER", path.display()), e);
        let text = std::fs::read_to_string(path).map_err(unread)?;
        Config::parse(&text).map_err(|e| e.context_path(path))
    }

    /// The server of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.ok_or_else(|| Error::new(Kind::Usage, format!("the configuration has no node {name:?}; name one of its nodes with --node")))
    }
}

/// Where a configuration is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// Line, from 1.
    pub line: usize,
    /// The field and what is wrong with it.
    pub what: String,
}

impl Flaw {
    fn context_path(self, path: &Path) -> Error {
        Error::new(Kind::Usage, format!("{}:{}: {}", path.display(), self.line, self.what))
    }
}
