//! The pager: a process that brings pages to a second instance while it runs, and its guardian, which shares its descriptors.
//!
//! If the pager ends early, its userfaultfds stay open in the guardian until that has killed the instance. If both end, the
//! wires kill it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::wait::{waitpid, WaitStatus};

use super::crew::Crew;
use super::pending::Pending;
use super::space::Space;
use super::wires::{self, Flock, Wires};
use super::{lazily, Ranges, Tag};
use crate::error::{Context, Error, Result};
use crate::image::Chain;
use crate::resource::memory::AddressSpace;
use crate::proc::{self, Pid};
use crate::restore::fill;
use crate::sys::{clone, fd, pidfd};
use crate::tracee::pager::{GUARDIAN, PAGER};

/// How long the kernel may take to end what was killed.
const DEATH_WITHIN: Duration = Duration::from_secs(10);
/// How soon after its birth was announced a child can be found.
const BIRTH_WITHIN: Duration = Duration::from_millis(50);

/// The guardian's life: starts the pager and sees to a clean end. `group` is the process group of whoever restores. All is
/// leaked, because each of the two would close the other's descriptors, and the pager those of the instance.
pub fn guard(chain: Arc<Chain>, spaces: Vec<AddressSpace>, socket: OwnedFd, group: Pid) -> Result<i32> {
    nix::sys::prctl::set_name(GUARDIAN).context("cannot take a name")?;
    let wires: &'static Wires = Box::leak(Box::new(Wires::new(group)?));
    let crew: &'static Crew = Box::leak(Box::new(Crew::new(chain)));
    let pager: &'static mut Pager = Box::leak(Box::new(Pager { crew, spaces, socket, speaks: true, flock: Flock::new(wires), late: Vec::new(), birth: None }));
    let work = || match pager.live() {
        Ok(()) => 0,
        Err(e) => {
            say(&format!("the pager of a second instance fails with {} MiB to come: {e}", crew.bytes_left() >> 20));
            1
        }
    };
    let pager = clone::child(libc::CLONE_FILES as u64, work).map_err(|e| Error::io("cannot start a pager", e))?;
    let end = waitpid(nix::unistd::Pid::from_raw(pager), None).context("cannot wait for the pager")?;
    if end == WaitStatus::Exited(nix::unistd::Pid::from_raw(pager), 0) {
        return Ok(0);
    }
    let doomed = instance();
    wires.pull();
    let pids: Vec<Pid> = doomed.iter().map(|(pid, _)| *pid).collect();
    kill_descendants(&pids);
    await_death(&doomed);
    if !pids.is_empty() {
        say(&format!("killed the second instance (processes {pids:?}): its pager, process {pager}, ended before all memory was in place; restore it anew"));
    }
    Ok(1)
}

/// The processes of the instance, by the descriptors that the pager has of them.
fn instance() -> Vec<(Pid, i32)> {
    let numbers = proc::numbers(std::path::Path::new("/proc/self/fd")).unwrap_or_default();
    numbers.into_iter().filter_map(|number| Some((wires::pid_of(number)?, number))).collect()
}

/// Children so young that the pager had not seen them yet.
fn kill_descendants(pids: &[Pid]) {
    let mut ahead = pids.to_vec();
    while let Some(parent) = ahead.pop() {
        for child in proc::children(parent).unwrap_or_default() {
            // It may be dead already.
            let _ = pidfd::open(child).and_then(|handle| pidfd::send_signal(handle.as_fd(), libc::SIGKILL));
            ahead.push(child);
        }
    }
}

fn await_death(doomed: &[(Pid, i32)]) {
    let deadline = Instant::now() + DEATH_WITHIN;
    for &(_, number) in doomed {
        while wires::pid_of(number).is_some_and(alive) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A zombie touches no memory.
fn alive(pid: Pid) -> bool {
    proc::stat::read(pid).is_ok_and(|stat| !stat.is_zombie())
}

/// To whoever started us, and to the system's log: a detached pager has no other listener.
fn say(words: &str) {
    const USER_ERROR: u32 = 11;
    eprintln!("stillframe: {words}");
    // There may be no log.
    let _ = UnixDatagram::unbound().and_then(|log| log.send_to(format!("<{USER_ERROR}>stillframe: {words}").as_bytes(), "/dev/log"));
}

/// What the pager's first thread works with: it reads what the kernel tells, the crew brings the pages.
struct Pager {
    crew: &'static Crew,
    spaces: Vec<AddressSpace>,
    socket: OwnedFd,
    /// Whether the restorer may still say something, which it does until the instance runs.
    speaks: bool,
    flock: Flock<'static>,
    /// Pages at which somebody waits, and which could not be brought during a change of the mappings.
    late: Vec<(Arc<Space>, u64)>,
    /// When the last birth was announced that has not been seen yet.
    birth: Option<Instant>,
}

impl Pager {
    /// From the first word of the restorer until all is in place.
    fn live(&mut self) -> Result<()> {
        nix::sys::prctl::set_name(PAGER).context("cannot take a name")?;
        let crew = self.crew;
        let mut threads = vec![std::thread::spawn(|| crew.serve())];
        threads.extend((0..fill::workers()).map(|_| std::thread::spawn(|| crew.work())));
        self.answer()?;
        while !crew.complete() && !threads.iter().any(|thread| thread.is_finished()) {
            if !self.turn()? {
                return Ok(());
            }
        }
        crew.end();
        let ends = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(Error::refused("one of its threads panicked"))));
        ends.collect::<Result<()>>()?;
        self.flock.set_free();
        Ok(())
    }

    /// Waits for something to do and does it; false if the restore has failed.
    fn turn(&mut self) -> Result<bool> {
        let spaces = self.crew.spaces();
        let sources = spaces.iter().map(|space| space.as_fd()).chain(self.speaks.then(|| self.socket.as_fd()));
        let mut ready: Vec<PollFd<'_>> = sources.map(|source| PollFd::new(source, PollFlags::POLLIN)).collect();
        let patience = if self.late.is_empty() && self.birth.is_none() { 10u16 } else { 1 };
        match poll(&mut ready, PollTimeout::from(patience)) {
            Err(nix::Error::EINTR) => return Ok(true),
            polled => drop(polled.context("cannot wait for page faults")?),
        }
        let told: Vec<bool> = ready.iter().map(|entry| entry.revents().is_some_and(|events| !events.is_empty())).collect();
        for (space, _) in spaces.iter().zip(&told).filter(|(_, &told)| told) {
            self.listen(space)?;
        }
        for (space, address) in std::mem::take(&mut self.late) {
            self.bring(&space, address)?;
        }
        self.find_children()?;
        match told.get(spaces.len()) {
            Some(true) => self.heed(),
            _ => Ok(true),
        }
    }

    fn listen(&mut self, space: &Arc<Space>) -> Result<()> {
        let news = space.listen()?;
        for child in news.children {
            self.crew.add(child);
            self.birth = Some(Instant::now());
        }
        news.faults.into_iter().try_for_each(|address| self.bring(space, address))
    }

    fn bring(&mut self, space: &Arc<Space>, address: u64) -> Result<()> {
        match space.source(self.crew.chain(), address) {
            Some(run) => self.crew.want(space, address, run),
            None if space.zero(address)? => {}
            None => self.late.push((Arc::clone(space), address)),
        }
        Ok(())
    }

    /// A child can be found as soon as its parent's fork goes on, which waited for us to read of it.
    fn find_children(&mut self) -> Result<()> {
        if let Some(announced) = self.birth {
            if self.flock.grow()? || announced.elapsed() > BIRTH_WITHIN {
                self.birth = None;
            }
        }
        Ok(())
    }

    /// A word from the restorer.
    fn heed(&mut self) -> Result<bool> {
        let message = fd::receive(self.socket.as_fd(), 16, 0).map_err(|e| Error::io("cannot hear from the restorer", e))?;
        let Some(message) = message else { return Ok(true) };
        let mut files = message.files.into_iter();
        match (Tag::read(&message.bytes), files.next()) {
            (Some((Tag::Space, object)), Some(uffd)) => self.crew.add(Space::new(uffd.into(), object, self.pending(object)?)),
            (Some((Tag::Process, _)), Some(handle)) => self.flock.add(handle)?,
            (Some((Tag::Serve, _)), None) => self.answer()?,
            (Some((Tag::Run, _)), None) => {
                self.crew.drain();
                self.speaks = false;
                self.answer()?;
            }
            // It has ended without letting the instance run.
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn answer(&self) -> Result<()> {
        fd::send(self.socket.as_fd(), b"k", &[], &[]).map(drop).map_err(|e| Error::io("cannot answer the restorer", e))
    }

    fn pending(&self, object: u32) -> Result<Pending> {
        let space = self.spaces.iter().find(|space| space.object == object);
        let space = space.ok_or_else(|| Error::corrupt("pages come for memory that the frame does not have"))?;
        let runs = self.crew.chain().runs(object);
        Ok(Pending::of(runs, &Ranges::around(runs, space, lazily)))
    }
}
