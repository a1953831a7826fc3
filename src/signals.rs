//! Signals as news that is read when there is time for it.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Context, Result};
use crate::proc::{status::Status, Pid};
use crate::sys::children;

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Somebody wants us to stop, by this signal.
    Stop(i32),
    /// A child changed state.
    Child,
    /// The time has come.
    Due,
}

/// The signals that concern a keeper, blocked and readable.
pub struct Signals {
    fd: SignalFd,
    stop: SigSet,
    /// What was blocked before us, which is what the program is to start with.
    pub before: SigSet,
}

impl Signals {
    /// Blocks SIGCHLD and all that ask us to stop; those that are ignored (by nohup, say) stay ignored.
    pub fn block() -> Result<Signals> {
        let ignored = Status::read(std::process::id() as Pid)?.hex("SigIgn")?;
        let stop: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().filter(|signal| ignored & (1 << (*signal as u32 - 1)) == 0).collect();
        let mut all = stop;
        all.add(Signal::SIGCHLD);
        let before = SigSet::thread_get_mask().context("cannot read the signal mask")?;
        all.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("cannot read signals")?;
        Ok(Signals { fd, stop, before })
    }

    /// Waits for news, until `due` at the latest.
    pub fn wait(&self, due: Option<Instant>) -> Result<News> {
        loop {
            if let Some(news) = self.read()? {
                return Ok(news);
            }
            let left = due.map(|due| due.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(News::Due);
            }
            self.poll(left)?;
        }
    }

    /// The same, and whether `other` became readable; that may come without news.
    pub fn wait_with(&self, other: BorrowedFd<'_>, due: Instant) -> Result<(Option<News>, bool)> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN), PollFd::new(other, PollFlags::POLLIN)];
        poll_for(&mut fds, Some(due.saturating_duration_since(Instant::now())))?;
        let readable = fds[1].any().unwrap_or(false);
        let news = self.read()?.or((Instant::now() >= due).then_some(News::Due));
        Ok((news, readable))
    }

    fn poll(&self, left: Option<Duration>) -> Result<()> {
        poll_for(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], left)
    }

    /// All that has come: a request to stop outweighs children.
    fn read(&self) -> Result<Option<News>> {
        let mut news = None;
        while let Some(info) = self.fd.read_signal().context("cannot read signals")? {
            match info.ssi_signo as i32 {
                libc::SIGCHLD if news.is_none() => news = Some(News::Child),
                libc::SIGCHLD => {}
                signal => news = Some(News::Stop(signal)),
            }
        }
        Ok(news)
    }

    /// Sleeps; true if a request to stop cut it short.
    pub fn pause(&self, time: Duration) -> Result<bool> {
        let due = Instant::now() + time;
        loop {
            match self.wait(Some(due))? {
                News::Stop(_) => return Ok(true),
                News::Child => {}
                News::Due => return Ok(false),
            }
        }
    }

    /// From now on a request to stop kills `root` and ends us.
    pub fn end_at_once(&self, root: Pid) -> Result<()> {
        children::end_at_once_on(&self.stop, root).context("cannot set signal handlers")
    }
}

fn poll_for(fds: &mut [PollFd<'_>], left: Option<Duration>) -> Result<()> {
    // Rounded up, lest the last millisecond be spent in a spin; a wait longer than poll can do is done in parts.
    let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX));
    match poll(fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e).context("cannot wait for signals"),
    }
}
