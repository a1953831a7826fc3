//! The warden: a process of its own that is the parent of all virtual nodes and keeps the deadline of the lease.
//!
//! One thread that never waits for an answer. Whatever happens to the agent (killed, stopped, stuck), what the lease owns ends
//! when the last deadline that the agent has told passes, which is well before the store gives it to somebody else.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sched::{setns, CloneFlags};
use nix::sys::signal::{kill, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use serde::{Deserialize, Serialize};

use super::net::{packet::Crier, Mac, Netlink};
use super::now_ms;
use super::vnode::{self, Spec};
use crate::error::{Context, Error, Result};
use crate::proc::{self, Pid};
use crate::sys::fd::{ioctl_exchange, receive, send};
use crate::sys::{clone, fd_extra};

/// Larger than any message.
const MESSAGE: usize = 256 * 1024;
/// How often an address is announced again once all have heard it.
const CRY_AGAIN: u64 = 10_000;

/// What the agent asks for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// What the lease owns may live until this moment.
    Until(u64),
    /// Make a virtual node, up to its network.
    Make(Box<Spec>),
    /// Its network stands: keep its address alive.
    Tend(u64),
    /// Start the service in it, from a frame or anew.
    Go(u64, Option<PathBuf>),
    /// End it.
    Kill(u64),
    /// End all virtual nodes now: the lease is gone.
    Fence,
    /// End everything.
    Quit,
}

/// What it hears.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// The network of a virtual node stands.
    Wired { id: u64, pid: Pid },
    /// The service runs as this process below this init.
    Runs { id: u64, pid: Pid, init: Pid, notes: Vec<String> },
    /// It could not be brought up; if the frame is damaged, an older one may do.
    Failed { id: u64, why: String, corrupt: bool },
    /// Nothing of the virtual node is left.
    Ended { id: u64, why: String },
    /// Somebody else claims its address.
    Conflict { id: u64, mac: Mac },
    /// The deadline passed: nothing of any virtual node is left.
    Fenced,
}

/// The agent's end.
#[derive(Debug, Clone)]
pub struct Warden {
    socket: Arc<OwnedFd>,
    /// Its process.
    pub pid: Pid,
}

impl Warden {
    /// Forks it; the caller must have a single thread. A watchdog device is fed with every new deadline, and bites before a lease of
    /// `ttl` ends.
    pub fn start(watchdog: Option<&Path>, ttl: Duration) -> Result<Warden> {
        let (ours, theirs) = fd_extra::socketpair(libc::SOCK_SEQPACKET).context("cannot make a socket pair")?;
        let mut watchdog = match watchdog {
            Some(path) => Some(whet(path, ttl)?),
            None => None,
        };
        let child = clone::child(0, || {
            // Our copy of the agent's end would hide its death.
            let agent = std::os::fd::AsRawFd::as_raw_fd(&ours);
            let _ = nix::unistd::close(agent);
            let mut guard = match Guard::new(theirs, watchdog.take()) {
                Ok(guard) => guard,
                Err(e) => {
                    eprintln!("stillframe: the warden: {e}");
                    return 1;
                }
            };
            guard.keep();
            0
        });
        Ok(Warden { pid: child.context("cannot fork the warden")?, socket: Arc::new(ours) })
    }

    /// Gives an order. One that is gone shows when its replies end.
    pub fn order(&self, order: &Order) {
        if let Ok(bytes) = serde_json::to_vec(order) {
            let _ = send(self.socket.as_fd(), &bytes, &[], &[]);
        }
    }

    /// The next reply; none once it is gone.
    pub fn reply(&self) -> Option<Reply> {
        let message = receive(self.socket.as_fd(), MESSAGE, 0).ok()??;
        serde_json::from_slice(&message.bytes).ok()
    }
}

/// Opens a watchdog, and has it bite at 0.85 of `ttl`.
fn whet(path: &Path, ttl: Duration) -> Result<File> {
    const SET_TIMEOUT: libc::c_ulong = 0xc004_5706;
    let dog = File::options().write(true).open(path).at("open the watchdog", path)?;
    let wanted = (ttl * 17 / 20).as_secs() as i32;
    let mut seconds = wanted;
    match ioctl_exchange(dog.as_fd(), SET_TIMEOUT, &mut seconds) {
        Ok(_) if seconds <= wanted => {}
        Ok(_) => eprintln!("stillframe: the watchdog {} bites after {seconds} s, not {wanted}: too late for leases of {ttl:?}", path.display()),
        Err(e) => eprintln!("stillframe: the watchdog {} keeps the time that it has ({e}); it must be {wanted} s at most", path.display()),
    }
    Ok(dog)
}

/// A virtual node.
struct Vnode {
    spec: Spec,
    pid: Pid,
    /// Tells it to go on.
    go: Option<OwnedFd>,
    tended: Option<Tended>,
}

/// An address that is kept alive.
struct Tended {
    netlink: Netlink,
    index: i32,
    crier: Crier,
    /// When to announce it again, and after which pause the time after that.
    next: u64,
    pause: u64,
}

struct Guard {
    socket: OwnedFd,
    signals: SignalFd,
    watchdog: Option<File>,
    vnodes: Vec<Vnode>,
    /// Those that are dead, while what they leave behind is still dying.
    dying: Vec<(u64, String, PathBuf)>,
    until: Option<u64>,
    /// The agent is gone.
    alone: bool,
}

impl Guard {
    fn new(socket: OwnedFd, watchdog: Option<File>) -> Result<Guard> {
        // In a session of its own: what a terminal sends to the agent is not for it.
        nix::unistd::setsid().context("cannot lead a session")?;
        nix::sys::prctl::set_child_subreaper(true).context("cannot become a subreaper")?;
        // A warden that is swapped out may be late; where memory may not be locked, it must do without.
        let _ = nix::sys::mman::mlockall(nix::sys::mman::MlockAllFlags::all());
        let mut mask = SigSet::empty();
        [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].iter().for_each(|signal| mask.add(*signal));
        mask.thread_block().context("cannot block signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("cannot read signals")?;
        Ok(Guard { socket, signals, watchdog, vnodes: Vec::new(), dying: Vec::new(), until: None, alone: false })
    }

    /// Until it is told to quit, or the agent is gone and the deadline has passed.
    fn keep(&mut self) {
        loop {
            self.wait();
            if self.until.is_some_and(|until| now_ms() >= until) {
                self.fence();
            }
            self.reap();
            if !self.alone && !self.listen() {
                return self.quit();
            }
            if self.alone && (self.until.is_none() || self.vnodes.is_empty()) {
                return self.quit();
            }
            self.announce();
        }
    }

    /// Until there is something to do, at most until the deadline.
    fn wait(&self) {
        let deadline = self.until.map_or(1000, |until| until.saturating_sub(now_ms()).min(1000));
        let cries = self.vnodes.iter().filter_map(|vnode| vnode.tended.as_ref()).map(|tended| tended.next.saturating_sub(now_ms()));
        let patience = cries.chain([deadline]).min().unwrap_or(deadline);
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if !self.alone {
            fds.push(PollFd::new(self.socket.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(self.vnodes.iter().filter_map(|vnode| vnode.tended.as_ref()).map(|tended| PollFd::new(tended.crier.fd(), PollFlags::POLLIN)));
        // Woken for nothing it looks, and waits again.
        let _ = poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO));
    }

    /// Carries out all orders; false: quit.
    fn listen(&mut self) -> bool {
        loop {
            let bytes = match receive(self.socket.as_fd(), MESSAGE, libc::MSG_DONTWAIT) {
                Ok(Some(message)) if message.bytes.is_empty() => return self.desert(),
                Ok(Some(message)) => message.bytes,
                Ok(None) => return true,
                Err(_) => return self.desert(),
            };
            match serde_json::from_slice(&bytes) {
                Ok(Order::Until(until)) => self.extend(until),
                Ok(Order::Make(spec)) => self.make(*spec),
                Ok(Order::Tend(id)) => self.tend(id),
                Ok(Order::Go(id, frame)) => self.go(id, frame),
                Ok(Order::Kill(id)) => self.kill(id),
                Ok(Order::Fence) => self.fence(),
                Ok(Order::Quit) => return false,
                Err(_) => {}
            }
        }
    }

    /// The agent is gone: what runs may run until the deadline.
    fn desert(&mut self) -> bool {
        self.alone = true;
        true
    }

    fn tell(&self, reply: &Reply) {
        tell(&self.socket, reply);
    }

    fn extend(&mut self, until: u64) {
        // Of a deadline that has passed nothing is left to extend.
        if until <= now_ms() {
            return;
        }
        self.until = Some(until);
        if let Some(watchdog) = &mut self.watchdog {
            // Not fed, it bites: nothing else is to be done here.
            let _ = watchdog.write_all(b"1");
        }
        for vnode in &self.vnodes {
            if let (Some(tended), Some(wire)) = (&vnode.tended, &vnode.spec.wire) {
                // An address that is not renewed goes by itself.
                let _ = tended.netlink.address(tended.index, wire.address, wire.seconds);
            }
        }
    }

    fn make(&mut self, spec: Spec) {
        let id = spec.id;
        let made = (|| {
            if self.until.is_none_or(|until| now_ms() >= until) {
                return Err(Error::refused("there is no lease that it could live under"));
            }
            let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("cannot make a pipe")?;
            let (socket, mine, other) = (&self.socket, spec.clone(), std::os::fd::AsRawFd::as_raw_fd(&writer));
            let pid = clone::child(0, || {
                // Its own copy of the writing end would keep the pipe open.
                let _ = nix::unistd::close(other);
                vnode::live(&mine, reader, &|reply| tell(socket, reply))
            });
            Ok((pid.context("cannot fork a virtual node")?, writer))
        })();
        match made {
            Ok((pid, go)) => self.vnodes.push(Vnode { spec, pid, go: Some(go), tended: None }),
            Err(e) => {
                self.tell(&Reply::Failed { id, why: e.to_string(), corrupt: false });
                self.tell(&Reply::Ended { id, why: "it was never made".to_owned() });
            }
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut Vnode> {
        self.vnodes.iter_mut().find(|vnode| vnode.spec.id == id)
    }

    fn tend(&mut self, id: u64) {
        let Some(vnode) = self.find(id) else { return };
        let Some(wire) = &vnode.spec.wire else { return };
        match within(vnode.pid, || vnode::outlook(wire)) {
            Ok((netlink, index, crier)) => vnode.tended = Some(Tended { netlink, index, crier, next: now_ms() + 50, pause: 50 }),
            Err(e) => {
                let why = e.to_string();
                self.kill(id);
                self.tell(&Reply::Failed { id, why, corrupt: false });
            }
        }
    }

    fn go(&mut self, id: u64, frame: Option<PathBuf>) {
        if let Some(go) = self.find(id).and_then(|vnode| vnode.go.take()) {
            let path = frame.map(PathBuf::into_os_string).unwrap_or_default();
            // A virtual node that has died is reaped in the next round.
            let _ = File::from(go).write_all(&[path.as_encoded_bytes(), b"\n"].concat());
        }
    }

    fn kill(&mut self, id: u64) {
        if let Some(vnode) = self.find(id) {
            signal(vnode.pid);
        }
    }

    /// Buries the dead. A virtual node has ended when nothing is left of it: its init is ours once its parent is gone.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let pid = status.pid().map_or(0, nix::unistd::Pid::as_raw);
            if let Some(at) = self.vnodes.iter().position(|vnode| vnode.pid == pid) {
                let gone = self.vnodes.remove(at);
                let why = match status {
                    WaitStatus::Exited(_, code) if code > 128 => format!("killed by signal {}", code - 128),
                    WaitStatus::Exited(_, code) => format!("exited with status {code}"),
                    _ => "ended by the agent".to_owned(),
                };
                self.dying.push((gone.spec.id, why, PathBuf::from(gone.spec.cgroup)));
            }
        }
        let known: BTreeSet<Pid> = self.vnodes.iter().map(|vnode| vnode.pid).collect();
        let orphans = proc::children(std::process::id() as Pid).unwrap_or_default().into_iter().filter(|pid| !known.contains(pid));
        if orphans.map(signal).count() > 0 {
            return;
        }
        let root = if self.dying.is_empty() { None } else { vnode::cgroups() };
        for (id, why, cgroup) in std::mem::take(&mut self.dying) {
            if let Some(root) = &root {
                // It is empty now; where there is none, there is nothing to remove.
                let _ = std::fs::remove_dir(root.join(cgroup));
            }
            self.tell(&Reply::Ended { id, why });
        }
    }

    /// The deadline has passed.
    fn fence(&mut self) {
        self.until = None;
        self.end_all();
        self.tell(&Reply::Fenced);
    }

    fn end_all(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        self.vnodes.iter().for_each(|vnode| signal(vnode.pid));
        let end = Instant::now() + PATIENCE;
        while !(self.vnodes.is_empty() && self.dying.is_empty()) && Instant::now() < end {
            self.reap();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn quit(&mut self) {
        self.end_all();
        if let Some(watchdog) = &mut self.watchdog {
            // The magic close: this end was meant.
            let _ = watchdog.write_all(b"V");
        }
    }

    /// Announces addresses, ever less often, and hears whether somebody else claims them.
    fn announce(&mut self) {
        let now = now_ms();
        let mut conflicts = Vec::new();
        for vnode in &mut self.vnodes {
            let Some(tended) = &mut vnode.tended else { continue };
            if let Some(mac) = tended.crier.foreign() {
                conflicts.push(Reply::Conflict { id: vnode.spec.id, mac });
                // In defence, but not in a storm.
                tended.next = tended.next.min(now + 200);
            }
            if now >= tended.next {
                // Said again later in any case.
                let _ = tended.crier.cry();
                tended.pause = (tended.pause * 2).min(CRY_AGAIN);
                tended.next = now + tended.pause;
            }
        }
        conflicts.iter().for_each(|conflict| self.tell(conflict));
    }
}

fn tell(socket: &OwnedFd, reply: &Reply) {
    if let Ok(bytes) = serde_json::to_vec(reply) {
        // An agent that is gone needs no reply.
        let _ = send(socket.as_fd(), &bytes, &[], &[]);
    }
}

fn signal(pid: Pid) {
    // It may be dead already.
    let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
}

/// Runs `act` in the network namespace of a process.
fn within<T>(pid: Pid, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let open = |path: PathBuf| File::open(&path).at("open", &path);
    let (own, other) = (open(PathBuf::from("/proc/self/ns/net"))?, open(proc::path(pid, "ns/net"))?);
    setns(other.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
    let done = act();
    setns(own.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot return to our network namespace")?;
    done
}
