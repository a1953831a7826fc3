//! Pseudo terminals of the tree, and controlling terminals.
//!
//! Bytes under way in a terminal are not in the frame, only noted: they cannot be looked at without being taken, and
//! would be lost to the first instance if we died before putting them back.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use serde::{Deserialize, Serialize};

use super::scan::Found;
use super::{external, Capture, Description, Kind};
use crate::error::{Context, Error, Result};
use crate::proc::{stat, Pid};
use crate::sys::fd::{ioctl_get, ioctl_set};
use crate::sys::fd_extra::peer_terminal;
use crate::tracee::{blank::Blank, Remote, RemoteExt};

/// A side of a pseudo terminal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Index into the table of terminals.
    pub terminal: usize,
    /// The master's side.
    pub master: bool,
}

/// A pseudo terminal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pty {
    /// N of /dev/pts/N; −1 if it hung up before the frame.
    pub number: i32,
    /// Input, output, control and local flags.
    pub modes: [u32; 4],
    /// Line discipline.
    pub line: u8,
    /// Control characters.
    pub characters: Vec<u8>,
    /// Input and output speed.
    pub speeds: [u32; 2],
    /// Rows, columns, and the same in pixels.
    pub window: [u16; 4],
    /// Packet mode.
    pub packet: bool,
    /// The slave cannot be opened yet.
    pub locked: bool,
    /// Mode, owner and group of the slave, if it is open.
    pub node: Option<(u32, u32, u32)>,
}

/// A session's hold on a terminal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Control {
    /// Index into the table of terminals.
    pub terminal: usize,
    /// The foreground process group, as the tree numbers it.
    pub foreground: Pid,
}

/// What kind of terminal a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The master of a pseudo terminal.
    Master,
    /// Anything that speaks to a user: a slave, a console, a serial line.
    Line,
}

/// Major numbers of slaves of pseudo terminals.
const SLAVES: std::ops::RangeInclusive<u32> = 136..=143;

/// Whether a character device is a terminal.
pub fn is_terminal(found: &Found) -> Option<Which> {
    let device = (nix::sys::stat::major(found.stat.st_rdev) as u32, nix::sys::stat::minor(found.stat.st_rdev) as u32);
    match device {
        (5, 2) => Some(Which::Master),
        (4 | 5 | 204, _) => Some(Which::Line),
        (major, _) if SLAVES.contains(&major) => Some(Which::Line),
        _ => None,
    }
}

fn slave_number(device: u32) -> Option<i32> {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    SLAVES.contains(&major).then(|| ((major - SLAVES.start()) * 256 + minor) as i32)
}

/// Describes the pseudo terminals whose masters the tree holds.
pub fn survey(capture: &mut Capture<'_>) -> Result<()> {
    for found in &capture.scan.found {
        if found.info.flags & libc::O_PATH != 0 || found.stat.st_mode & libc::S_IFMT != libc::S_IFCHR || is_terminal(found) != Some(Which::Master) {
            continue;
        }
        let pty = examine(capture.scan, found).map_err(|e| found.failed("examine", e))?;
        let waiting = under_way(capture.scan, found, pty.number);
        if waiting > 0 {
            capture.notes.push(format!("{}: {waiting} bytes under way in terminal /dev/pts/{} are not in the frame", found.place(), pty.number));
        }
        capture.terminals.push(pty);
    }
    Ok(())
}

/// Bytes that one side has written and the other has not read; a line still being typed does not count.
fn under_way(scan: &super::scan::Scan, master: &Found, number: i32) -> i32 {
    let name = format!("/dev/pts/{number}");
    let count = |found: &Found, request| ioctl_get::<i32>(found.fd.as_fd(), request).unwrap_or(0);
    let slave = scan.found.iter().find(|other| other.link == name && other.info.flags & libc::O_PATH == 0);
    count(master, libc::FIONREAD as libc::c_ulong) + count(master, libc::TIOCOUTQ as libc::c_ulong) + slave.map_or(0, |slave| count(slave, libc::FIONREAD as libc::c_ulong))
}

fn examine(scan: &super::scan::Scan, found: &Found) -> std::io::Result<Pty> {
    let master = found.fd.as_fd();
    let flag = |request| ioctl_get::<i32>(master, request).map(|value| value != 0);
    let number = ioctl_get::<i32>(master, libc::TIOCGPTN as libc::c_ulong)?;
    let modes: libc::termios2 = ioctl_get(master, libc::TCGETS2 as libc::c_ulong)?;
    let window: libc::winsize = ioctl_get(master, libc::TIOCGWINSZ as libc::c_ulong)?;
    let name = format!("/dev/pts/{number}");
    let slave = scan.found.iter().find(|other| other.link == name);
    Ok(Pty {
        number,
        modes: [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag],
        line: modes.c_line,
        characters: modes.c_cc.to_vec(),
        speeds: [modes.c_ispeed, modes.c_ospeed],
        window: [window.ws_row, window.ws_col, window.ws_xpixel, window.ws_ypixel],
        packet: flag(libc::TIOCGPKT as libc::c_ulong)?,
        locked: flag(libc::TIOCGPTLCK as libc::c_ulong)?,
        node: slave.map(|slave| (slave.stat.st_mode & 0o7777, slave.stat.st_uid, slave.stat.st_gid)),
    })
}

/// Captures a side of a terminal; a terminal of which the tree has no master leads outside.
pub fn capture(capture: &mut Capture<'_>, found: &Found, which: Which) -> Result<Kind> {
    let master = which == Which::Master;
    let number = match which {
        Which::Master => ioctl_get::<i32>(found.fd.as_fd(), libc::TIOCGPTN as libc::c_ulong).map(Some),
        // Tells the true device even of /dev/tty.
        Which::Line => ioctl_get::<u32>(found.fd.as_fd(), libc::TIOCGDEV as libc::c_ulong).map(slave_number),
    };
    let number = match number {
        Ok(number) => number,
        Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(hung_up(capture)),
        Err(e) => return Err(found.failed("examine", e)),
    };
    match capture.terminals.iter().position(|pty| Some(pty.number) == number) {
        Some(terminal) => Ok(Kind::Terminal(State { terminal, master })),
        None => Ok(external::terminal(capture, found)),
    }
}

/// A slave whose master was closed: it comes back as one.
fn hung_up(capture: &mut Capture<'_>) -> Kind {
    capture.terminals.push(Pty { number: -1, modes: [0; 4], line: 0, characters: Vec::new(), speeds: [0; 2], window: [0; 4], packet: false, locked: false, node: None });
    Kind::Terminal(State { terminal: capture.terminals.len() - 1, master: false })
}

/// The controlling terminal of session leader `pid`, if it is one of the tree's.
pub fn control(capture: &mut Capture<'_>, pid: Pid) -> Result<Option<Control>> {
    let stat = stat::read(pid)?;
    let number = slave_number(stat.tty as u32).filter(|_| stat.sid == pid && stat.tty != 0);
    let Some(terminal) = number.and_then(|number| capture.terminals.iter().position(|pty| pty.number == number)) else { return Ok(None) };
    let number = capture.terminals[terminal].number;
    let is_master = |found: &&Found| is_terminal(found) == Some(Which::Master) && ioctl_get::<i32>(found.fd.as_fd(), libc::TIOCGPTN as libc::c_ulong).ok() == Some(number);
    let group = capture.scan.found.iter().find(is_master).and_then(|found| ioctl_get::<i32>(found.fd.as_fd(), libc::TIOCGPGRP as libc::c_ulong).ok());
    let foreground = group.filter(|&group| group > 0).and_then(|group| capture.inner(group)).unwrap_or(0);
    Ok(Some(Control { terminal, foreground }))
}

/// A pseudo terminal made anew, by its master. No slave is opened needlessly: the master would see it close.
pub struct Made(OwnedFd);

/// How many terminals are made in the hope for the right number.
const TRIES: usize = 256;

/// Makes a pseudo terminal anew, under its old number if that is free.
pub fn make(pty: &Pty, notes: &mut Vec<String>) -> Result<Made> {
    let (master, number) = open_numbered(pty.number)?;
    if pty.number >= 0 && number != pty.number {
        notes.push(format!("terminal /dev/pts/{} is now /dev/pts/{number}: the old number is in use", pty.number));
    }
    ioctl_set(master.as_fd(), libc::TIOCSPTLCK as libc::c_ulong, &0i32).context("cannot unlock a terminal")?;
    if pty.number >= 0 {
        configure(pty, &master).map_err(|e| Error::io(format!("cannot configure terminal /dev/pts/{number}"), e))?;
    }
    Ok(Made(master))
}

fn open_numbered(wanted: i32) -> Result<(OwnedFd, i32)> {
    let mut others = Vec::new();
    loop {
        let master = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/ptmx").context("cannot open /dev/ptmx")?;
        let number = ioctl_get::<i32>(master.as_fd(), libc::TIOCGPTN as libc::c_ulong).context("cannot number a terminal")?;
        // Numbers are given from the lowest free one up.
        if number >= wanted || others.len() >= TRIES {
            let (first, number) = if number == wanted { (master, number) } else { others.into_iter().next().unwrap_or((master, number)) };
            return Ok((first.into(), number));
        }
        others.push((master, number));
    }
}

fn configure(pty: &Pty, master: &OwnedFd) -> std::io::Result<()> {
    let mut modes: libc::termios2 = ioctl_get(master.as_fd(), libc::TCGETS2 as libc::c_ulong)?;
    [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag] = pty.modes;
    modes.c_line = pty.line;
    for (to, from) in modes.c_cc.iter_mut().zip(&pty.characters) {
        *to = *from;
    }
    [modes.c_ispeed, modes.c_ospeed] = pty.speeds;
    ioctl_set(master.as_fd(), libc::TCSETS2 as libc::c_ulong, &modes)?;
    let [ws_row, ws_col, ws_xpixel, ws_ypixel] = pty.window;
    ioctl_set(master.as_fd(), libc::TIOCSWINSZ as libc::c_ulong, &libc::winsize { ws_row, ws_col, ws_xpixel, ws_ypixel })?;
    ioctl_set(master.as_fd(), libc::TIOCPKT as libc::c_ulong, &i32::from(pty.packet))?;
    Ok(())
}

/// One side.
pub fn restore(state: &State, pty: &Pty, description: &Description, made: &Made) -> Result<OwnedFd> {
    if state.master {
        return made.0.try_clone().context("cannot duplicate a terminal's master");
    }
    let slave = peer_terminal(made.0.as_fd(), description.flags & (libc::O_ACCMODE | libc::O_NONBLOCK)).context("cannot open a terminal")?;
    if let Some((mode, uid, gid)) = pty.node {
        std::os::unix::fs::fchown(&slave, Some(uid), Some(gid)).context("cannot set a terminal's owner")?;
        nix::sys::stat::fchmod(&slave, nix::sys::stat::Mode::from_bits_truncate(mode)).context("cannot set a terminal's mode")?;
    }
    Ok(slave)
}

/// Locks the slave where it was locked; after all sides are open.
pub fn close_up(pty: &Pty, made: &Made) -> Result<()> {
    match pty.locked {
        true => ioctl_set(made.0.as_fd(), libc::TIOCSPTLCK as libc::c_ulong, &1i32).map(drop).context("cannot lock a terminal"),
        false => Ok(()),
    }
}

/// Gives session leader `blank` its controlling terminal; processes of the session that it forks from then on have it too.
pub fn take(made: &Made, blank: &mut Blank) -> Result<()> {
    let slave = peer_terminal(made.0.as_fd(), libc::O_RDWR).context("cannot open a terminal")?;
    let fd = blank.borrow(slave.as_fd())?;
    blank.must("take its controlling terminal", libc::SYS_ioctl, [fd, libc::TIOCSCTTY, 0, 0, 0, 0])?;
    blank.must("close a descriptor", libc::SYS_close, [fd, 0, 0, 0, 0, 0]).map(drop)
}

/// Puts the right group into the foreground; all groups of the session must exist.
pub fn connect(control: &Control, made: &Made, blank: &mut Blank, notes: &mut Vec<String>) -> Result<()> {
    if control.foreground <= 0 {
        return Ok(());
    }
    let slave = peer_terminal(made.0.as_fd(), libc::O_RDWR).context("cannot open a terminal")?;
    let fd = blank.borrow(slave.as_fd())?;
    let group = blank.put(&control.foreground.to_ne_bytes())?;
    if blank.call(libc::SYS_ioctl, [fd, libc::TIOCSPGRP, group, 0, 0, 0]).is_err() {
        notes.push(format!("pid {}: process group {} could not be put into the foreground of its terminal", blank.pid(), control.foreground));
    }
    blank.must("close a descriptor", libc::SYS_close, [fd, 0, 0, 0, 0, 0]).map(drop)
}
