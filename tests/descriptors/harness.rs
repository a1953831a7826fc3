//! A live program with descriptors, its frame, and blank processes that get them again.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdout, Command, Stdio};

use stillframe::proc::Pid;
use stillframe::resource::contents::Contents;
use stillframe::resource::fd::restore::{OpenSet, RestoreOptions};
use stillframe::resource::fd::scan::Scan;
use stillframe::resource::fd::{self, CaptureOptions, Descriptors};
use stillframe::resource::files::open::{ContentSource, Opener, Policy};
use stillframe::resource::files::{FileEntry, FileTable};
use stillframe::sys::fd::{receive, Message};
use stillframe::sys::{fd_extra, pidfd};
use stillframe::tracee::blank::Blank;
use stillframe::tracee::seize::Frozen;

const PRELUDE: &str = r#"
import os, sys, socket, select, fcntl, time, ctypes, struct, signal, array, tempfile
os.closerange(3, 1000)
libc = ctypes.CDLL(None, use_errno=True)
def place(f, n):
    n0 = f if isinstance(f, int) else (f.detach() if hasattr(f, "detach") else f.fileno())
    os.dup2(n0, n); os.close(n0)
def place_copy(f, n):
    os.dup2(f if isinstance(f, int) else f.fileno(), n)
tmp = sys.argv[1]
"#;

/// A program with descriptors; after the frame it checks them itself.
pub struct Target {
    pub child: Child,
    pub out: BufReader<ChildStdout>,
    pub dir: tempfile::TempDir,
}

impl Target {
    pub fn start(setup: &str, after: &str) -> Target {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("{PRELUDE}\n{setup}\nprint('ready', flush=True)\nsys.stdin.readline()\n{after}\nprint('fine', flush=True)\ntime.sleep(100)\n");
        let mut child = Command::new("python3").args(["-c", &script]).arg(dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut target = Target { child, out, dir };
        assert_eq!(target.line(), "ready");
        target
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn pid(&self) -> Pid {
        self.child.id() as Pid
    }

    /// A frame of all processes of the tree, each with a table of its own; the program then says whether it was disturbed.
    pub fn frame(&mut self, options: CaptureOptions) -> stillframe::Result<Frame> {
        let _room = fd::scan::Room::make();
        let frozen = Frozen::seize(self.pid())?;
        let holders: Vec<Pid> = frozen.processes.iter().map(|process| process.pid).collect();
        let mut files = FileTable::new(self.pid());
        let mut contents = Contents::new(self.dir.path().to_owned());
        let start = std::time::Instant::now();
        let descriptors = Scan::of(&holders).and_then(|scan| fd::capture(scan, &mut files, &options));
        let took = start.elapsed();
        let saved = files.save_pathless(&mut contents);
        frozen.thaw();
        let descriptors = descriptors?;
        saved?;
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        assert_eq!(self.line(), "fine", "the target was disturbed");
        // As a frame does it: by way of text.
        let text = serde_json::to_string(&descriptors).unwrap();
        Ok(Frame { descriptors: serde_json::from_str(&text).unwrap(), entries: files.entries, source: Source(contents), took })
    }

    pub fn end(&mut self) {
        let pid = self.pid();
        for child in stillframe::tracee::seize::tree(pid).unwrap_or_default() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.end();
    }
}

pub struct Source(Contents);

impl ContentSource for Source {
    fn each(&self, object: u32, sink: &mut dyn FnMut(u64, &[u8]) -> stillframe::Result<()>) -> stillframe::Result<()> {
        let content = self.0.list.iter().find(|content| content.object == object).unwrap();
        let mut bytes = vec![0; content.len as usize];
        content.file.read_exact_at(&mut bytes, 0).unwrap();
        sink(0, &bytes)
    }
}

pub struct Frame {
    pub descriptors: Descriptors,
    pub entries: Vec<FileEntry>,
    pub source: Source,
    pub took: std::time::Duration,
}

/// Second instances of the tables.
pub struct Again {
    pub blanks: Vec<Blank>,
    pub notes: Vec<String>,
}

impl Frame {
    pub fn restore(&self) -> Again {
        let mut opener = Opener::check(&self.entries, &self.source, Policy::default()).unwrap();
        let mut open = OpenSet::open(&self.descriptors, &mut opener, &RestoreOptions { to_stdio: false }).unwrap();
        let own = pidfd::open(std::process::id() as Pid).unwrap();
        let service = nix::fcntl::fcntl(&own, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(1500)).unwrap();
        let mut blanks: Vec<Blank> = self.descriptors.tables.iter().map(|_| blank(service)).collect();
        nix::unistd::close(service).unwrap();
        for (table, blank) in blanks.iter_mut().enumerate() {
            open.take_terminal(table, blank).unwrap();
        }
        for (table, blank) in blanks.iter_mut().enumerate() {
            open.install(table, blank, service).unwrap();
        }
        for (table, blank) in blanks.iter_mut().enumerate() {
            open.connect(table, blank).unwrap();
        }
        open.arm().unwrap();
        Again { blanks, notes: std::mem::take(&mut open.notes) }
    }
}

pub fn blank(service: i32) -> Blank {
    use stillframe::tracee::RemoteExt;
    let mut blank = Blank::spawn(0).unwrap();
    blank.keep_only(service).unwrap();
    blank.map_first_scratch().unwrap();
    // A leader of its own session, as the controlling terminal's owner must be.
    blank.must("lead a session", libc::SYS_setsid, [0; 6]).unwrap();
    blank
}

impl Again {
    pub fn get_in(&self, table: usize, number: i32) -> OwnedFd {
        pidfd::get(pidfd::open(self.blanks[table].pid).unwrap().as_fd(), number).unwrap()
    }

    pub fn get(&self, number: i32) -> OwnedFd {
        self.get_in(0, number)
    }

    pub fn link(&self, number: i32) -> String {
        std::fs::read_link(format!("/proc/{}/fd/{number}", self.blanks[0].pid)).unwrap().display().to_string()
    }

    pub fn info(&self, number: i32) -> String {
        std::fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.blanks[0].pid)).unwrap()
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        for blank in &self.blanks {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(blank.pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

pub fn tcp_close() -> CaptureOptions {
    CaptureOptions { tcp_close: true, ..CaptureOptions::default() }
}

pub fn round_trip(setup: &str, after: &str) -> (Target, Frame, Again) {
    round_trip_with(setup, after, CaptureOptions::default())
}

pub fn round_trip_with(setup: &str, after: &str, options: CaptureOptions) -> (Target, Frame, Again) {
    let mut target = Target::start(setup, after);
    let frame = target.frame(options).unwrap_or_else(|e| panic!("{e}"));
    target.end();
    let again = frame.restore();
    (target, frame, again)
}

pub fn refusal(setup: &str) -> String {
    let mut target = Target::start(setup, "");
    let refused = target.frame(CaptureOptions::default()).map(|frame| frame.descriptors).unwrap_err().to_string();
    assert!(!refused.contains('\n'));
    refused
}

pub fn flags(fd: BorrowedFd<'_>) -> i32 {
    fd_extra::fcntl(fd, libc::F_GETFL, 0).unwrap()
}

pub fn bytes_in(fd: BorrowedFd<'_>) -> Vec<u8> {
    fd_extra::fcntl(fd, libc::F_SETFL, flags(fd) | libc::O_NONBLOCK).unwrap();
    let mut buf = vec![0; 1 << 20];
    let n = nix::unistd::read(fd, &mut buf).unwrap();
    buf.truncate(n);
    buf
}

pub fn message(fd: BorrowedFd<'_>) -> Message {
    receive(fd, 1 << 16, libc::MSG_DONTWAIT).unwrap().expect("a message")
}

pub fn ready(fd: &OwnedFd, events: i16) -> i16 {
    fd_extra::ready(fd.as_fd(), events).unwrap()
}
