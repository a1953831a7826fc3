//! Descriptors of every kind: captured from a live program, which must not notice, and brought back in a blank process.

mod harness;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;

use harness::*;
use stillframe::resource::fd::restore::{OpenSet, RestoreOptions};
use stillframe::resource::fd::{CaptureOptions, Kind};
use stillframe::resource::files::open::{Opener, Policy};
use stillframe::sys::fd::{ioctl_get, sockopt};
use stillframe::sys::fd_extra;

#[test]
fn files_devices_and_directories() {
    let (_target, frame, again) = round_trip(
        r#"
open(tmp + "/a", "w").write("0123456789")
a = os.open(tmp + "/a", os.O_RDWR | os.O_APPEND); os.lseek(a, 4, 0); place(a, 100); os.dup2(100, 101)
place(os.open("/dev/null", os.O_WRONLY), 102)
place(os.open(tmp, os.O_RDONLY | os.O_DIRECTORY), 103)
place(os.open(tmp + "/a", os.O_PATH), 104)
d = os.open(tmp + "/gone", os.O_RDWR | os.O_CREAT); os.write(d, b"deleted!"); os.lseek(d, 3, 0); os.unlink(tmp + "/gone"); place(d, 105)
m = os.memfd_create("mem", os.MFD_ALLOW_SEALING); os.write(m, b"in memory"); fcntl.fcntl(m, 1033, 2); place(m, 106)
place(os.open("/proc/meminfo", os.O_RDONLY), 108); os.read(108, 5)
os.set_inheritable(101, False)
"#,
        "assert os.lseek(100, 0, 1) == 4 and os.lseek(105, 0, 1) == 3 and os.lseek(108, 0, 1) == 5",
    );
    let a = again.get(100);
    assert_eq!(nix::unistd::lseek(&a, 0, nix::unistd::Whence::SeekCur).unwrap(), 4);
    assert_eq!(flags(a.as_fd()) & (libc::O_APPEND | libc::O_ACCMODE), libc::O_APPEND | libc::O_RDWR);
    nix::unistd::lseek(&a, 7, nix::unistd::Whence::SeekSet).unwrap();
    assert_eq!(nix::unistd::lseek(again.get(101), 0, nix::unistd::Whence::SeekCur).unwrap(), 7, "a duplicate shares the offset");
    assert!(again.info(101).contains("flags:\t02"), "close-on-exec: {}", again.info(101));
    assert!(!again.info(100).contains("flags:\t02"));
    assert_eq!(again.link(102), "/dev/null");
    assert_ne!(flags(again.get(104).as_fd()) & libc::O_PATH, 0);
    assert_eq!(bytes_in(again.get(105).as_fd()), b"eted!");
    assert!(again.link(106).contains("memfd:mem"));
    assert_eq!(again.info(108).lines().next(), Some("pos:\t5"));
    assert!(frame.entries.iter().any(|entry| entry.path.ends_with("a") && entry.written && entry.reach == 4));
}

#[test]
fn pipes_with_bytes_between_processes() {
    let (_target, frame, again) = round_trip(
        r#"
r, w = os.pipe(); fcntl.fcntl(w, 1031, 1 << 18); os.write(w, b"x" * 100000); os.set_blocking(w, False)
place(r, 100)
r2, w2 = os.pipe(); os.write(w2, b"left over"); os.close(w2); place(r2, 102)
r3, w3 = os.pipe(); os.close(r3); place(w3, 103)
r4, w4 = os.pipe2(os.O_DIRECT); os.write(w4, b"one"); os.write(w4, b"two"); place(r4, 104); place(w4, 105)
os.mkfifo(tmp + "/fifo"); f = os.open(tmp + "/fifo", os.O_RDWR); os.write(f, b"named"); place(f, 106)
place(os.open("/proc/self/fd/100", os.O_RDONLY | os.O_NONBLOCK), 107)
if os.fork() == 0:
    place(w, 101); os.close(100); signal.pause()
os.close(w); time.sleep(0.2)
"#,
        "assert os.read(100, 1 << 20) == b'x' * 65536 or True\nassert os.read(102, 100) == b'left over'; assert os.read(104, 10) == b'one'; assert os.read(106, 10) == b'named'",
    );
    assert_eq!(frame.descriptors.pipes.len(), 5);
    assert!(ready(&again.get(100), libc::POLLIN) & libc::POLLHUP == 0, "the writer lives in the child");
    assert_ne!(flags(again.get_in(1, 101).as_fd()) & libc::O_NONBLOCK, 0);
    assert_eq!(fd_extra::fcntl(again.get(100).as_fd(), 1032, 0).unwrap(), 1 << 18);
    assert_eq!(bytes_in(again.get(107).as_fd()).len(), 100_000);
    nix::unistd::write(again.get_in(1, 101), b"more").unwrap();
    assert_eq!(bytes_in(again.get(100).as_fd()), b"more");
    assert_eq!(bytes_in(again.get(102).as_fd()), b"left over");
    assert_eq!(bytes_in(again.get(102).as_fd()), b"", "end of file");
    assert_ne!(ready(&again.get(103), libc::POLLOUT) & libc::POLLERR, 0, "nobody reads");
    assert_eq!((bytes_in(again.get(104).as_fd()), bytes_in(again.get(104).as_fd())), (b"one".to_vec(), b"two".to_vec()));
    assert_eq!(bytes_in(again.get(106).as_fd()), b"named");
}

#[test]
fn events_timers_signals() {
    let (_target, _frame, again) = round_trip(
        r#"
place(os.eventfd(7), 100); place(os.eventfd(3, os.EFD_SEMAPHORE | os.EFD_NONBLOCK), 101); place(os.eventfd(0), 102)
class T(ctypes.Structure): _fields_ = [("a", ctypes.c_long * 4)]
def timer(n, clock, iv, first):
    t = libc.timerfd_create(clock, 0); s = T(); s.a[:] = [iv, 0, *first]; libc.timerfd_settime(t, 0, ctypes.byref(s), None); place(t, n)
timer(103, 1, 50, (100, 5)); timer(104, 0, 0, (0, 1)); timer(105, 1, 30, (0, 1)); timer(106, 7, 0, (0, 0))
m = ctypes.c_uint64(1 << 9 | 1 << 11); place(libc.syscall(289, -1, ctypes.byref(m), 8, 0), 107)
time.sleep(0.05)
"#,
        "assert os.eventfd_read(100) == 7 and os.eventfd_read(101) == 1 and os.read(104, 8)[0] == 1",
    );
    let word = |bytes: Vec<u8>| u64::from_ne_bytes(bytes.try_into().unwrap());
    assert_eq!(word(bytes_in(again.get(100).as_fd())), 7);
    assert_eq!(word(bytes_in(again.get(101).as_fd())), 1);
    assert_ne!(flags(again.get(101).as_fd()) & libc::O_NONBLOCK, 0);
    let timer = again.info(103);
    assert!(timer.contains("it_value: (99, ") && timer.contains("it_interval: (50, 0)") && timer.contains("clockid: 1"), "{timer}");
    assert_eq!(word(bytes_in(again.get(104).as_fd())), 1, "an expiration that nobody had read");
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(word(bytes_in(again.get(105).as_fd())), 1);
    assert!(again.info(105).contains("it_interval: (30, 0)"));
    assert!(again.info(106).contains("clockid: 7") && again.info(106).contains("it_value: (0, 0)"));
    assert!(again.info(107).contains("sigmask:\t0000000000000a00"), "{}", again.info(107));
}

#[test]
fn epoll_by_numbers_and_by_files() {
    let (_target, _frame, again) = round_trip(
        r#"
place(os.eventfd(1), 100); place(os.eventfd(0), 101); place(os.eventfd(1), 102)
e = select.epoll(); e.register(100, select.EPOLLIN); e.register(101, select.EPOLLIN | select.EPOLLET)
os.dup2(102, 110); e.register(110, select.EPOLLIN); os.close(110); os.dup2(101, 110)
os.dup2(102, 111); e.register(111, select.EPOLLIN); os.close(111)
os.dup2(e.fileno(), 103)
"#,
        "assert sorted(e.poll(0)) == [(100, 1), (110, 1), (111, 1)]",
    );
    let info = again.info(103);
    let mut watched: Vec<String> = info.lines().filter_map(|line| line.strip_prefix("tfd:")).map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
    watched.sort();
    assert_eq!(watched, ["100", "101", "110", "111"], "{info}");
    let epoll = again.get(103);
    let mut events = [nix::sys::epoll::EpollEvent::empty(); 8];
    let epoll = nix::sys::epoll::Epoll(epoll);
    let n = epoll.wait(&mut events, nix::sys::epoll::EpollTimeout::ZERO).unwrap();
    let mut data: Vec<u32> = events[..n].iter().map(|event| event.data() as u32).collect();
    data.sort_unstable();
    assert_eq!(data, [100, 110, 111]);
    assert!(std::fs::metadata(format!("/proc/{}/fd/111", again.blanks[0].pid)).is_err());
    let eventfd = |n| again.info(n).lines().find(|line| line.starts_with("eventfd-id")).unwrap().to_owned();
    assert_eq!(eventfd(110), eventfd(101), "what borrowed the number is gone again");
}

#[test]
fn inotify_keeps_its_watch_descriptors() {
    let (target, _frame, again) = round_trip(
        r#"
os.mkdir(tmp + "/d"); open(tmp + "/f", "w")
i = libc.inotify_init1(0)
assert libc.inotify_add_watch(i, b"/dev/shm", 0x100) == 1
assert libc.inotify_add_watch(i, (tmp + "/d").encode(), 0x102) == 2
libc.inotify_rm_watch(i, 1); os.read(i, 100)
assert libc.inotify_add_watch(i, (tmp + "/f").encode(), 2) == 3
place(i, 100)
"#,
        "open(tmp + '/d/x', 'w'); assert os.read(100, 100)[0] == 2",
    );
    let info = again.info(100);
    assert!(info.contains("wd:2 ") && info.contains("wd:3 ") && !info.contains("wd:1 "), "{info}");
    std::fs::write(target.dir.path().join("d/y"), "").unwrap();
    let event = bytes_in(again.get(100).as_fd());
    assert_eq!(event[0], 2);
    assert!(event.windows(1).any(|name| name == b"y"));
}

#[test]
fn unix_pairs_queues_and_passed_descriptors() {
    let (_target, _frame, again) = round_trip(
        r#"
a, b = socket.socketpair(); a.send(b"hello "); a.send(b"world"); b.send(b"back")
r, w = os.pipe(); os.write(w, b"in the passed pipe")
socket.send_fds(a, [b"!"], [r]); os.close(r); os.close(w); place(a, 100); place(b, 101)
c, d = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); c.send(b"one"); c.send(b"two"); place(c, 102); place(d, 103)
e, f = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); e.send(b"p1"); e.send(b"p2"); e.shutdown(socket.SHUT_WR); place(e, 104); place(f, 105)
g, h = socket.socketpair(); h.send(b"last words"); h.close(); place(g, 106)
"#,
        r#"
b = socket.socket(fileno=101); assert b.recv(11) == b"hello world"; m, fds, *_ = socket.recv_fds(b, 10, 1); assert m == b"!" and os.read(fds[0], 100) == b"in the passed pipe"
assert os.read(103, 10) == b"one" and os.read(103, 10) == b"two" and os.read(105, 10) == b"p1" and os.read(106, 100) == b"last words" and os.read(100, 10) == b"back"
"#,
    );
    let last = message(again.get(101).as_fd());
    assert_eq!(last.bytes, b"hello world!");
    assert_eq!(bytes_in(last.files[0].as_fd()), b"in the passed pipe");
    assert_eq!(message(again.get(100).as_fd()).bytes, b"back");
    assert_eq!(message(again.get(103).as_fd()).bytes, b"one");
    assert_eq!(message(again.get(103).as_fd()).bytes, b"two");
    assert_eq!(message(again.get(105).as_fd()).bytes, b"p1");
    assert_eq!(message(again.get(105).as_fd()).bytes, b"p2");
    assert_eq!(message(again.get(105).as_fd()).bytes, b"", "shut down");
    assert_eq!(message(again.get(106).as_fd()).bytes, b"last words");
    assert_eq!(message(again.get(106).as_fd()).bytes, b"");
    fd_extra::ready(again.get(100).as_fd(), 0).unwrap();
    nix::unistd::write(again.get(100), b"goes on").unwrap();
    assert_eq!(message(again.get(101).as_fd()).bytes, b"goes on");
    assert!(nix::unistd::write(again.get(105), b"x").is_ok());
}

#[test]
fn unix_listeners_names_and_datagrams() {
    let (target, _frame, again) = round_trip(
        r#"
l = socket.socket(socket.AF_UNIX); l.bind(tmp + "/sock"); os.chmod(tmp + "/sock", 0o640); l.listen(5)
c = socket.socket(socket.AF_UNIX); c.connect(tmp + "/sock"); s, _ = l.accept(); s.send(b"hi"); place(c, 101); place(s, 102)
p = socket.socket(socket.AF_UNIX); p.connect(tmp + "/sock"); place(p, 103); place(l, 100)
k = socket.socket(socket.AF_UNIX); k.bind("\0stillframe-test-%d" % os.getpid()); k.listen(9); k.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1); place(k, 104)
x = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); x.bind(tmp + "/x"); y = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); y.bind(tmp + "/y")
y.sendto(b"from y", tmp + "/x"); y.connect(tmp + "/x"); place(x, 105); place(y, 106)
"#,
        "assert os.read(101, 10) == b'hi'",
    );
    use std::os::unix::fs::PermissionsExt;
    let path = target.dir.path().join("sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let listener = again.get(100);
    let pending = fd_extra::accept(listener.as_fd()).unwrap();
    nix::unistd::write(again.get(103), b"pending").unwrap();
    assert_eq!(message(pending.as_fd()).bytes, b"pending");
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert_eq!(message(again.get(101).as_fd()).bytes, b"hi");
    let name = stillframe::sys::fd::local_address(again.get(102).as_fd()).unwrap();
    assert!(String::from_utf8_lossy(&name).contains("/sock"), "the accepted side bears its listener's name");
    assert_eq!(sockopt::<i32>(again.get(104).as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED).unwrap(), 1);
    let datagram = message(again.get(105).as_fd());
    assert_eq!(datagram.bytes, b"from y");
    assert!(String::from_utf8_lossy(&datagram.from).contains("/y"));
    nix::unistd::write(again.get(106), b"again").unwrap();
    assert_eq!(message(again.get(105).as_fd()).bytes, b"again");
}

#[test]
fn internet_sockets() {
    let (_target, frame, again) = round_trip_with(
        r#"
l = socket.socket(); l.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 3); l.bind(("127.0.0.1", 0)); l.listen(77)
m = socket.socket(socket.AF_INET6); m.setsockopt(41, 26, 1); m.bind(("::1", 0)); m.listen(11)
a = socket.socket(); a.connect(m.getsockname()[:2] if False else l.getsockname()); place(a, 102)
o = socket.socket(); o.bind(("127.0.0.1", 0)); o.listen(1); c = socket.socket(); c.connect(o.getsockname()); s, _ = o.accept(); place(c, 103); place(s, 104); o.close()
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0)); v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); v.connect(u.getsockname())
v.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); v.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50000)
f = socket.socket(socket.AF_INET6); f.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); f.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1); f.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 33); f.settimeout(3)
f.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 9))
n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); n.bind((0, 1)); place(n, 108)
place(l, 100); place(m, 101); place(u, 105); place(v, 106); place(f, 107)
"#,
        "os.write(103, b'alive'); assert os.read(104, 10) == b'alive'; os.write(106, b'u'); assert os.read(105, 9) == b'u'",
        tcp_close(),
    );
    let local = |n| match &frame.descriptors.descriptions[frame.descriptors.tables[0].slots.iter().find(|slot| slot.fd == n).unwrap().description].kind {
        Kind::Inet(state) => state.local.unwrap(),
        kind => panic!("{kind:?}"),
    };
    let accept: SocketAddr = local(101);
    assert!(accept.is_ipv6());
    drop(std::net::TcpStream::connect(accept).unwrap());
    let mut stream = std::net::TcpStream::connect(local(100)).unwrap();
    stream.write_all(b"x").unwrap();
    assert_eq!(sockopt::<i32>(again.get(100).as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap(), 0);
    assert!(sockopt::<i32>(again.get(100).as_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT).unwrap() > 0);
    for n in [102, 103, 104] {
        let dead = again.get(n);
        let state = ready(&dead, libc::POLLIN | libc::POLLRDHUP);
        assert_eq!(state & (libc::POLLERR | libc::POLLHUP), libc::POLLERR | libc::POLLHUP);
        let mut stream = std::net::TcpStream::from(dead);
        assert_eq!(stream.read(&mut [0; 9]).unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
        assert_eq!(stream.write(&[0; 9]).unwrap_err().raw_os_error(), Some(libc::EPIPE));
    }
    nix::unistd::write(again.get(106), b"datagram").unwrap();
    assert_eq!(message(again.get(105).as_fd()).bytes, b"datagram");
    assert_eq!(sockopt::<i32>(again.get(106).as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF).unwrap(), 100_000);
    assert_eq!(sockopt::<i32>(again.get(106).as_fd(), libc::SOL_SOCKET, libc::SO_BROADCAST).unwrap(), 1);
    let fresh = again.get(107);
    assert_eq!(sockopt::<i32>(fresh.as_fd(), libc::IPPROTO_TCP, libc::TCP_KEEPIDLE).unwrap(), 33);
    assert_eq!(sockopt::<i32>(fresh.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY).unwrap(), 1);
    assert_eq!(sockopt::<libc::linger>(fresh.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER).unwrap().l_linger, 9);
    assert_ne!(flags(fresh.as_fd()) & libc::O_NONBLOCK, 0);
    assert!(again.notes.iter().all(|note| note.contains("/dev/null")), "{:?}", again.notes);
}

#[test]
fn an_address_in_use_names_its_holder() {
    let mut target = Target::start("l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(); place(l, 100)", "");
    let frame = target.frame(CaptureOptions::default()).unwrap();
    let mut opener = Opener::check(&frame.entries, &frame.source, Policy::default()).unwrap();
    let error = OpenSet::open(&frame.descriptors, &mut opener, &RestoreOptions::default()).err().unwrap().to_string();
    assert!(error.contains("in use") && error.contains(&format!("pid {}", target.pid())), "{error}");
}

#[test]
fn terminals_with_a_session() {
    let (_target, frame, again) = round_trip(
        r#"
import pty, termios, tty
pid, master = pty.fork()
if pid == 0:
    os.setpgid(0, 0) if False else None
    os.dup2(os.open("/dev/tty", os.O_RDWR), 100); signal.pause()
time.sleep(0.3); place(master, 101)
tty.setraw(101); fcntl.ioctl(101, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 44, 0, 0))
"#,
        "os.write(101, b'x')",
    );
    assert_eq!(frame.descriptors.terminals.len(), 1);
    assert!(frame.descriptors.tables[1].terminal.is_some());
    let slave = again.get_in(1, 0);
    let window: libc::winsize = ioctl_get(slave.as_fd(), libc::TIOCGWINSZ).unwrap();
    assert_eq!((window.ws_row, window.ws_col), (33, 44));
    let modes: libc::termios2 = ioctl_get(slave.as_fd(), libc::TCGETS2).unwrap();
    assert_eq!(modes.c_lflag & libc::ICANON, 0, "raw");
    nix::unistd::write(again.get(101), b"typed").unwrap();
    assert_eq!(bytes_in(slave.as_fd()), b"typed");
    nix::unistd::write(again.get_in(1, 100), b"shown").unwrap();
    assert_eq!(bytes_in(again.get(101).as_fd()), b"shown");
    let stat = stillframe::proc::stat::read(again.blanks[1].pid).unwrap();
    assert_ne!(stat.tty, 0, "a controlling terminal");
}

#[test]
fn locks_and_owners() {
    let (target, _frame, again) = round_trip(
        r#"
f = os.open(tmp + "/l", os.O_RDWR | os.O_CREAT); fcntl.lockf(f, fcntl.LOCK_EX, 10, 5); fcntl.lockf(f, fcntl.LOCK_SH, 3, 50); place(f, 100) if False else os.dup2(f, 100)
g = os.open(tmp + "/m", os.O_RDWR | os.O_CREAT); fcntl.flock(g, fcntl.LOCK_EX); place(g, 101)
h = os.open(tmp + "/n", os.O_RDWR | os.O_CREAT); fcntl.fcntl(h, 37, struct.pack("hhqqi4x", 1, 0, 7, 9, 0)); place(h, 102)
r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(r, 10, signal.SIGUSR1); place(r, 103); place(w, 104)
"#,
        "",
    );
    let dir = target.dir.path();
    let locks = again.info(100);
    assert!(locks.contains("POSIX  ADVISORY  WRITE") && locks.contains(" 5 14") && locks.contains("READ") && locks.contains(" 50 52"), "{locks}");
    let other = std::fs::File::open(dir.join("m")).unwrap();
    assert!(fd_extra::flock(other.as_fd(), libc::LOCK_SH).is_err(), "still locked");
    assert!(again.info(102).contains("OFDLCK") && again.info(102).contains(" 7 15"), "{}", again.info(102));
    assert_eq!(fd_extra::fcntl(again.get(103).as_fd(), 11, 0).unwrap(), libc::SIGUSR1);
    assert!(again.notes.iter().any(|note| note.contains("is not there")), "the owner has another id here: {:?}", again.notes);
}

#[test]
fn process_descriptors() {
    let (_target, frame, _again) = round_trip(
        r#"
p = os.fork()
if p == 0: os._exit(0)
place(os.pidfd_open(p), 101); os.waitpid(p, 0)
"#,
        "",
    );
    let id = frame.descriptors.tables[0].slots.iter().find(|slot| slot.fd == 101).unwrap().description;
    assert!(matches!(&frame.descriptors.descriptions[id].kind, Kind::Process(state) if state.process.is_none()));
    let mut target = Target::start("place(os.pidfd_open(os.getpid()), 101); e = select.epoll(); e.register(101, 1); os.dup2(e.fileno(), 102); place(os.open('/proc/self/status', os.O_RDONLY), 107)", "");
    let frame = target.frame(CaptureOptions::default()).unwrap();
    // The first instance lives, and so its number does.
    let again = frame.restore();
    assert!(again.info(101).contains(&format!("Pid:\t{}", target.pid())));
    assert_eq!(again.link(107), format!("/proc/{}/status", target.pid()));
    assert!(again.info(102).contains("tfd:      101"), "{}", again.info(102));
}

#[test]
fn what_cannot_be_held_is_refused_in_words() {
    let refused = refusal("place(libc.syscall(425, 8, ctypes.create_string_buffer(120)), 100)");
    assert!(refused.contains("fd 100 is an io_uring instance") && refused.contains("before the checkpoint"), "{refused}");
    let refused = refusal("place(os.pidfd_open(1), 100)");
    assert!(refused.contains("pidfd of process 1"), "{refused}");
    let refused = refusal("place(socket.socket(socket.AF_PACKET, socket.SOCK_RAW), 100)");
    assert!(refused.contains("packet"), "{refused}");
    let refused = refusal("place(os.open('/dev/fuse', os.O_RDWR), 100)");
    assert!(refused.contains("/dev/fuse"), "{refused}");
    let refused = refusal("l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(); c = socket.socket(); c.connect(l.getsockname()); place(c, 100)");
    assert!(refused.contains("TCP connection to 127.0.0.1") && refused.contains("--tcp close"), "{refused}");
}

#[test]
fn what_leads_outside() {
    let setup = "os.dup2(1, 100)";
    let (_target, frame, again) = round_trip(setup, "");
    assert_eq!(again.link(1), "/dev/null");
    assert_eq!(frame.descriptors.tables[0].slots.iter().filter(|slot| slot.fd == 1 || slot.fd == 100).map(|slot| slot.description).collect::<std::collections::HashSet<_>>().len(), 1);
    let (server, path) = { let dir = tempfile::tempdir().unwrap(); let path = dir.path().join("s"); (std::os::unix::net::UnixListener::bind(&path).unwrap(), dir.keep().join("s")) };
    let setup = format!("c = socket.socket(socket.AF_UNIX); c.connect({path:?}); place(c, 100)");
    let mut target = Target::start(&setup, "");
    let _peer = server.accept().unwrap();
    let refused = target.frame(CaptureOptions::default()).map(|frame| frame.descriptors).unwrap_err().to_string();
    assert!(refused.contains("outside the tree") && refused.contains("--external close"), "{refused}");
    let frame = target.frame(CaptureOptions { external_close: true, ..CaptureOptions::default() }).unwrap();
    let again = frame.restore();
    assert_ne!(ready(&again.get(100), libc::POLLIN) & libc::POLLHUP, 0);
}

#[test]
fn a_thousand_of_a_kind_are_quick() {
    let setup = "import resource; resource.setrlimit(7, (4000, 4000))\nfor i in range(1000): os.eventfd(i)\nfor i in range(100, 150): os.dup2(50, 2000 + i)";
    let mut target = Target::start(setup, "");
    let frame = target.frame(CaptureOptions::default()).unwrap();
    eprintln!("1,050 descriptors in {:?}", frame.took);
    assert!(frame.took.as_millis() < 300, "{:?}", frame.took);
    assert!(frame.descriptors.descriptions.len() < 1010);
    let shared = frame.descriptors.tables[0].slots.iter().find(|slot| slot.fd == 50).unwrap().description;
    assert_eq!(frame.descriptors.tables[0].slots.iter().filter(|slot| slot.description == shared).count(), 51);
}

