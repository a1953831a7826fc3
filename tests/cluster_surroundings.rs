//! The cluster among things that misbehave: neighbours with its address, a stuck warden, full storage, a wall clock that jumps.
//!
//! Needs root, etcd, ip, nsenter and a C compiler.
#![cfg(feature = "cluster")]

#[path = "cluster/mod.rs"]
#[allow(dead_code)]
mod kit;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use kit::field::{ask, eventually, Field, Plan, TICKER};
use kit::ps;
use kit::rest::rest;
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::sys::socket::{socket, AddressFamily, SockFlag, SockProtocol, SockType};

fn alerted(field: &Field, what: &str) {
    eventually(what, || field.file("alerts").contains(what).then_some(()));
}

/// What `ip` says in the switch.
fn switch(field: &Field, args: &str) -> String {
    let out = Command::new("ip").args(["-n", &field.switch()]).args(args.split(' ')).output().unwrap();
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Says to all neighbours on `br0`, as a host that knows no better would, that the address is at another hardware address.
fn claim_by_advertisement(field: &Field, ip: Ipv6Addr) {
    let index = switch(field, "-o link show br0").split(':').next().and_then(|number| number.parse().ok()).expect("the number of br0");
    let fd = socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::IcmpV6).unwrap();
    let message = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &ip.octets(), &[2, 1, 2, 0xbb, 0, 0, 0, 1]].concat();
    let all = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
    UdpSocket::from(fd).send_to(&message, all).unwrap();
}

/// An address of the new protocol is announced like one of the old, and others who claim either are noticed.
#[test]
fn addresses_move_and_are_defended() {
    let six = "[[service]]\nname = \"six\"\ncommand = [\"sleep\", \"1000\"]\nnodes = [\"a\", \"b\"]\naddress = \"fd77::100/64\"\nevery = \"300ms\"\n";
    let field = Field::new(&format!("{TICKER}{six}"));
    field.ready();
    field.runs_on("six", "a");
    switch(&field, "addr add fd77::254/64 dev br0 nodad");
    let reached = || TcpStream::connect_timeout(&"[fd77::100]:9".parse().unwrap(), Duration::from_secs(1)).err().filter(|e| e.kind() == ErrorKind::ConnectionRefused);
    eventually("its closed ports refuse", reached);
    // A neighbour that remembers something wrong learns better from the announcements of the new owner.
    eventually("its frame", || field.view().services["six"].frame.is_some().then_some(()));
    switch(&field, "neigh replace fd77::100 lladdr 02:bb:00:00:00:02 dev br0 nud stale");
    assert_eq!(field.operated(&["failover", "six", "--to", "b"]), "six: a -> b\n");
    eventually("the neighbour learns", || (!switch(&field, "-6 neigh show dev br0").contains("02:bb:00:00:00:02")).then_some(()));
    eventually("it is reached on b", reached);
    claim_by_advertisement(&field, "fd77::100".parse().unwrap());
    alerted(&field, "conflict six");
    // A host that has the other one's address asks for a neighbour.
    switch(&field, "addr add 10.77.0.100/32 dev br0");
    UdpSocket::bind("10.77.0.100:0").unwrap().send_to(b"?", "10.77.0.250:9").unwrap();
    alerted(&field, "conflict tick");
    switch(&field, "addr del 10.77.0.100/32 dev br0");
    assert_eq!(field.still(), 1, "it stays where it is");
    field.judge();
}

/// Eats what feeds it; true once nothing has come for 0.85 of a lease.
fn starves(dog: &mut File, fed: &mut usize) -> bool {
    let quiet = PollTimeout::try_from(2550).unwrap();
    let hungry = poll(&mut [PollFd::new(dog.as_fd(), PollFlags::POLLIN)], quiet).unwrap() == 0;
    if !hungry {
        *fed += dog.read(&mut [0; 64]).unwrap();
    }
    hungry
}

/// A warden that is stuck feeds its watchdog no more, and that ends the server in time. A critical member of a process group resets
/// its server, another one does not.
#[test]
fn the_watchdog_bites_and_critical_members_reset() {
    let kennel = tempfile::tempdir().unwrap();
    for node in ["b", "c"] {
        File::create(kennel.path().join(node)).unwrap();
    }
    let path = kennel.path().join("a");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Both ends, so that nobody waits for the other.
    let mut dog = File::options().read(true).write(true).open(&path).unwrap();
    let lines = format!("watchdog = \"{}/THISNODE\"\nreset = \"touch DIR/reset-THISNODE\"", kennel.path().display());
    let field = Field::with(TICKER, &lines);
    field.ready();
    let mut fed = 0;
    assert!(!starves(&mut dog, &mut fed) && fed > 0, "it is fed");
    let mut members: Vec<_> = (0..2).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
    for (member, (name, critical)) in members.iter().zip([("plain", 0), ("vital", 1)]) {
        let answer = rest(&format!("POST /groups/g/members/{name}?pid={}&critical={critical}", member.id()), 3, "");
        assert!(answer["revision"].is_number(), "{answer}");
    }
    let mut end = |at: usize| {
        members[at].kill().unwrap();
        members[at].wait().unwrap();
    };
    end(0);
    alerted(&field, "member-exited");
    eventually("it is unregistered", || rest("GET /groups/g", 3, "")["members"].get("plain").is_none().then_some(()));
    assert!(!field.dir.path().join("reset-c").exists(), "nobody needs it");
    end(1);
    eventually("its server is reset", || field.dir.path().join("reset-c").exists().then_some(()));
    // The others are commands that an alert runs.
    let warden = ps::children(field.agent(0)).into_iter().min_by_key(|&child| ps::started(child)).expect("a warden");
    field.signal(&[warden], Signal::SIGSTOP);
    eventually("it is fed no more", || starves(&mut dog, &mut fed).then_some(()));
    assert_eq!(field.still(), 1, "until then nobody takes it over");
    ps::kill_at_once(&field.processes(0));
    field.another(1);
    field.runs_on("tick", "b");
    field.frames(2);
    assert_eq!(field.judge().len(), 2);
}

/// A small file system over a directory, for as long as it is kept.
struct Small<'a>(&'a Path);

impl Small<'_> {
    fn over(dir: &Path) -> Small<'_> {
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=48m")).unwrap();
        Small(dir)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Storage that is full stops frames and nothing else: the service runs, an alert goes out, and what is there is enough to resume.
#[test]
fn full_storage_is_told_and_survived() {
    let field = Field::new("");
    let frames = field.dir.path().join("frames");
    eventually("all have joined", || (field.view().nodes.len() == 3).then_some(()));
    let _small = Small::over(&frames);
    assert_eq!(field.apply(TICKER), "added tick\n");
    field.ready();
    let mut filler = File::create(frames.join("filler")).unwrap();
    while filler.write_all(&[7; 65536]).is_ok() {}
    alerted(&field, "no-frames tick");
    let known = field.lives();
    assert_eq!(field.still(), known, "it runs on");
    field.signal(&[field.service()], Signal::SIGKILL);
    field.another(known);
    fs::remove_file(frames.join("filler")).unwrap();
    drop(filler);
    field.frames(4);
    assert_eq!(field.running("tick"), "a");
    field.judge();
}

/// The agents' wall clock jumps ahead and back: leases, takeovers and frames go by another one.
#[test]
fn a_step_of_the_wall_clock_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (source, library, clock) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/clock.c"), dir.path().join("clock.so"), dir.path().join("clock"));
    let built = Command::new("cc").args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap();
    assert!(built.success());
    // Written in place: the agents have it mapped.
    let step = |seconds: i64| File::options().write(true).create(true).truncate(false).open(&clock).unwrap().write_all(&seconds.to_ne_bytes()).unwrap();
    step(0);
    let (preload, at) = (format!("LD_PRELOAD={}", library.display()), format!("STILLFRAME_TEST_CLOCK={}", clock.display()));
    let mut field = Field::of(&Plan { services: TICKER, env: &[&preload, &at], ..Plan::default() });
    field.ready();
    let ahead = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        (field.view().services["tick"].frame.as_ref().unwrap().taken_ns / 1_000_000_000) as i64 - now
    };
    for hours in [30, -50] {
        step(hours * 3600);
        field.frames(4);
        assert!((ahead() - hours * 3600).abs() < 1800, "the agents believe it: {} s", ahead());
        assert_eq!(field.view().nodes.len(), 3);
        assert_eq!(field.still(), 1, "nobody is fenced");
    }
    field.signal(&[field.service()], Signal::SIGKILL);
    field.another(1);
    assert_eq!(field.running("tick"), "a");
    field.frames(2);
    step(70 * 3600);
    field.kill_agent(0);
    field.another(2);
    field.runs_on("tick", "b");
    field.frames(4);
    eventually("an answer", || ask(Duration::from_secs(1)).ok());
    assert_eq!(field.judge().len(), 3);
}
