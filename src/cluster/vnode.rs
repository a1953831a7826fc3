//! A virtual node: namespaces with an interface, an address and a cgroup of their own, in which a service starts or comes back.
//!
//! It is a child of the warden, single-threaded. It makes the network first, so that clients get an answer while the rest is
//! under way; told to go on, it makes the other namespaces and brings the service up below an init of ours.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{unshare, CloneFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{waitpid, WaitStatus};
use serde::{Deserialize, Serialize};

use super::config::Address;
use super::net::{packet, Mac, Netlink};
use super::warden::Reply;
use crate::error::{Context, Error, Kind, Result};
use crate::host::Host;
use crate::isolate::{self, Network};
use crate::proc::Pid;
use crate::resource::fd::restore::RestoreOptions;
use crate::restore::launch::outer_pid;
use crate::restore::lazy::Pager;
use crate::restore::{restore, Loaded, Options};
use crate::supervise;
use crate::sys::{children, clone};

/// The interface inside.
pub const INNER: &str = "eth0";

/// What a virtual node is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// Tells one virtual node from the next.
    pub id: u64,
    /// The service: its host name.
    pub service: String,
    /// The program, for a start without a frame.
    pub command: Vec<String>,
    /// Where a daemon writes its process id.
    pub pid_file: Option<PathBuf>,
    /// Where its output goes.
    pub log: PathBuf,
    /// Its network; none: a loopback interface.
    pub wire: Option<Wire>,
    /// The name of its cgroup.
    pub cgroup: String,
    /// Upper limit of its memory in bytes.
    pub memory_max: Option<u64>,
    /// It runs before all of its memory is there.
    pub lazy: bool,
}

/// The network of a virtual node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wire {
    /// Its address.
    pub address: Address,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// The bridge of the server.
    pub bridge: String,
    /// The name of the outer interface.
    pub outer: String,
    /// The hardware address, the same on every server.
    pub mac: Mac,
    /// How long the address lasts without being renewed.
    pub seconds: u32,
    /// Answer nothing until the service is back.
    pub hold: bool,
    /// Ports that answer with 503 meanwhile.
    pub http: Vec<u16>,
    /// The second address that the 503 page names.
    pub second: Option<String>,
    /// Clients to be woken: (service's end, client's end).
    pub clients: Vec<(SocketAddr, SocketAddr)>,
}

/// The body of the child: returns when the service has ended. `go` gives the path of a frame, or nothing for a fresh start.
pub fn live(spec: &Spec, go: OwnedFd, tell: &dyn Fn(&Reply)) -> i32 {
    match bring_up(spec, go, tell) {
        Ok(init) => match waitpid(nix::unistd::Pid::from_raw(init), None) {
            Ok(WaitStatus::Exited(_, status)) => status,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
            _ => 1,
        },
        Err(e) => {
            tell(&Reply::Failed { id: spec.id, why: e.to_string(), corrupt: e.kind() == Kind::Corrupt });
            1
        }
    }
}

fn bring_up(spec: &Spec, go: OwnedFd, tell: &dyn Fn(&Reply)) -> Result<Pid> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("cannot bind a virtual node's life to the warden's")?;
    SigSet::empty().thread_set_mask().context("cannot unblock signals")?;
    nix::unistd::setsid().context("cannot lead a session")?;
    let notes: Vec<String> = join_cgroup(spec).err().map(|e| format!("without a cgroup: {e}")).into_iter().collect();
    let door = wire_up(spec)?;
    tell(&Reply::Wired { id: spec.id, pid: std::process::id() as Pid });
    let mut line = String::new();
    BufReader::new(File::from(go)).read_line(&mut line).context("cannot hear from the warden")?;
    if let Some(door) = door {
        close_door(door);
    }
    let frame = match line.strip_suffix('\n') {
        Some("") => None,
        Some(path) => Some(Loaded::open(Path::new(path))?),
        None => return Err(Error::new(Kind::TargetGone, "the warden went away")),
    };
    // Before the other namespaces are made: it must see the processes that it serves.
    let pager = frame.as_ref().filter(|_| spec.lazy).map(|frame| Pager::start(frame, true)).transpose()?;
    let (init, pid) = start(spec, frame, pager)?;
    if let Some(wire) = spec.wire.as_ref().filter(|wire| wire.hold) {
        let netlink = Netlink::open()?;
        netlink.routes(netlink.index(INNER)?, wire.address, wire.gateway)?;
    }
    tell(&Reply::Runs { id: spec.id, pid, init, notes });
    Ok(init)
}

/// Where version 2 of cgroups is mounted, on a machine that has it.
pub fn cgroups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup2 ")))?;
    Some(PathBuf::from(line.split(' ').nth(4)?))
}

fn join_cgroup(spec: &Spec) -> Result<()> {
    let root = cgroups().ok_or_else(|| Error::new(Kind::NotFound, "no version 2 of cgroups is mounted"))?;
    let dir = root.join(&spec.cgroup);
    fs::create_dir_all(&dir).at("create", &dir)?;
    if let Some(most) = spec.memory_max {
        let path = dir.join("memory.max");
        fs::write(&path, most.to_string()).at("write", &path)?;
    }
    let path = dir.join("cgroup.procs");
    fs::write(&path, "0").at("write", &path)
}

/// Makes the network namespace; returns the process that answers with errors meanwhile, if there is one.
fn wire_up(spec: &Spec) -> Result<Option<Pid>> {
    let outside = Netlink::open()?;
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (needs CAP_SYS_ADMIN)")?;
    let inside = Netlink::open()?;
    inside.up(inside.index("lo")?)?;
    // A listener bound to the service's address must be possible whether the address is there just now or not.
    for (family, file) in [("ipv4", "ip_nonlocal_bind"), ("ipv6", "ip_nonlocal_bind")] {
        // Without IPv6 there is nothing to set.
        let _ = fs::write(format!("/proc/sys/net/{family}/{file}"), "1");
    }
    let Some(wire) = &spec.wire else { return Ok(None) };
    let own = File::open("/proc/self/ns/net").context("cannot open our network namespace")?;
    outside.make_pair(&wire.outer, outside.index(&wire.bridge)?, INNER, wire.mac, own.as_fd())?;
    let index = inside.index(INNER)?;
    inside.up(index)?;
    if wire.hold {
        // Without a route no answer leaves: packets are dropped, while neighbours learn where the address is.
        for conf in ["all", INNER] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{conf}/rp_filter"), "0").context("cannot accept packets without a way back")?;
        }
    } else {
        inside.address(index, wire.address, wire.seconds)?;
        inside.routes(index, wire.address, wire.gateway)?;
        return Ok(open_door(wire));
    }
    inside.address(index, wire.address, wire.seconds).map(|()| None)
}

/// A process that answers HTTP requests with 503; closed ports answer by themselves.
fn open_door(wire: &Wire) -> Option<Pid> {
    let listeners: Vec<TcpListener> = wire.http.iter().filter_map(|&port| TcpListener::bind((wire.address.ip, port)).ok()).collect();
    if listeners.is_empty() {
        return None;
    }
    clone::child(0, || {
        if nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_err() {
            return 1;
        }
        std::thread::scope(|scope| {
            for listener in &listeners {
                scope.spawn(|| listener.incoming().flatten().for_each(|client| turn_away(client, wire.second.as_deref())));
            }
        });
        0
    })
    .ok()
}

fn turn_away(mut client: TcpStream, second: Option<&str>) {
    let _ = client.set_read_timeout(Some(Duration::from_millis(200)));
    // Unread bytes would turn our answer into a reset.
    let _ = client.read(&mut [0; 4096]);
    let place = second.map_or(String::new(), |second| format!("It is also served at {second}.\n"));
    let body = format!("The service is being moved to another server; try again.\n{place}");
    let location = second.map_or(String::new(), |second| format!("X-Second-Address: {second}\r\n"));
    let head = format!("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n{location}Content-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = client.write_all((head + &body).as_bytes());
}

fn close_door(door: Pid) {
    let door = nix::unistd::Pid::from_raw(door);
    // It may have ended by itself.
    let _ = nix::sys::signal::kill(door, Signal::SIGKILL);
    let _ = waitpid(door, None);
}

/// Forks the init of a new pid namespace, which brings the service up; gives the ids of both as the server numbers them.
fn start(spec: &Spec, frame: Option<Loaded>, pager: Option<Pager>) -> Result<(Pid, Pid)> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    let init = clone::child(Network::Host.clone_flags(), || init(spec, frame, pager, File::from(writer)));
    let init = init.map_err(|e| Error::io("cannot make the namespaces of a virtual node (needs CAP_SYS_ADMIN)", e))?;
    let mut word = String::new();
    File::from(reader).read_to_string(&mut word).context("cannot hear from a virtual node")?;
    match word.split_once(' ') {
        Some(("runs", inner)) => {
            let inner = inner.parse().map_err(|_| Error::corrupt("a virtual node says nonsense"))?;
            let pid = outer_pid(init, inner).ok_or_else(|| Error::new(Kind::TargetGone, "the service ended as soon as it had started"))?;
            Ok((init, pid))
        }
        Some(("corrupt", why)) => Err(Error::corrupt(why)),
        Some((_, why)) => Err(Error::new(Kind::Refused, why)),
        None => Err(Error::new(Kind::Refused, "the init of a virtual node died")),
    }
}

/// The init: ends when the service does, and with it everything in its namespace.
fn init(spec: &Spec, frame: Option<Loaded>, pager: Option<Pager>, mut word: File) -> i32 {
    let outcome = (|| {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("cannot bind the init's life")?;
        let held = supervise::hold_signals()?;
        let pid = match frame {
            Some(frame) => {
                isolate::furnish(&Network::Host, &frame.manifest.host)?;
                restore(&frame, &Options { descriptors: RestoreOptions { to_stdio: false }, pager, ..Options::default() })?.pid
            }
            None => {
                isolate::furnish(&Network::Host, &Host { hostname: spec.service.clone(), ..Host::here()? })?;
                fresh(spec)?
            }
        };
        Ok::<_, Error>((pid, held))
    })();
    let (text, running) = match outcome {
        Ok((pid, held)) => (format!("runs {pid}"), Some((pid, held))),
        Err(e) if e.kind() == Kind::Corrupt => (format!("corrupt {e}"), None),
        Err(e) => (format!("failed {e}"), None),
    };
    let told = word.write_all(text.as_bytes());
    drop(word);
    match running {
        Some((pid, held)) if told.is_ok() => supervise::until_exit(pid, &held).unwrap_or(1),
        _ => 1,
    }
}

/// Starts the program for the first time; gives its process id.
fn fresh(spec: &Spec) -> Result<Pid> {
    // Low ids are for the helpers of a later restore.
    fs::write("/proc/sys/kernel/ns_last_pid", "99").context("cannot choose process ids")?;
    let log = OpenOptions::new().create(true).append(true).open(&spec.log).at("open", &spec.log)?;
    let (program, arguments) = spec.command.split_first().ok_or_else(|| Error::new(Kind::Usage, "there is no command to run"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().at("share", &spec.log)?).stderr(log).process_group(0);
    let mut child = children::start_clean(&mut command, SigSet::empty()).spawn().map_err(|e| Error::io(format!("cannot start {program}"), e))?;
    let Some(file) = &spec.pid_file else { return Ok(child.id() as Pid) };
    let status = child.wait().context("cannot wait for a daemon to fork away")?;
    if !status.success() {
        return Err(Error::new(Kind::Refused, format!("{program}: {status}")));
    }
    await_pid(file)
}

/// A daemon writes its file soon after its parent has gone.
fn await_pid(file: &Path) -> Result<Pid> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let pid: Option<Pid> = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
        match pid.filter(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
            Some(pid) => return Ok(pid),
            None if Instant::now() > end => return Err(Error::new(Kind::NotFound, format!("the daemon does not write its process id to {}", file.display()))),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Wakes clients and opens what keeps an address alive from outside; for the warden, which enters the namespace for a moment.
pub fn outlook(wire: &Wire) -> Result<(Netlink, i32, packet::Crier)> {
    let netlink = Netlink::open()?;
    let index = netlink.index(INNER)?;
    let crier = packet::Crier::open(index, wire.mac, wire.address.ip).context("cannot speak to neighbours")?;
    // That nobody hears is known only later.
    let _ = crier.cry();
    if !wire.hold {
        let _ = packet::tickle(&wire.clients);
    }
    Ok((netlink, index, crier))
}
