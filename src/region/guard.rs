//! Write-protected blocks: the first write to one waits until it is copied aside, then goes on. Blocks that nobody writes are
//! read where they are.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::freeze::own;
use super::memory::Area;
use super::session::silent_thread;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::uffd::{feature, mode, Message, Uffd};

/// Where a block stands. It is write-protected in `Armed`, `Reading` and `Saved`.
#[derive(Debug)]
enum Block {
    /// Written, or never part of a snapshot.
    Open,
    /// Part of the snapshot in flight, to be read.
    Armed,
    /// Being read where it is.
    Reading,
    /// Not written since it was read.
    Saved,
    /// Part of the snapshot in flight, and written since.
    Copied(Box<[u8]>),
}

/// The watched pages of one region.
#[derive(Debug)]
struct Range {
    area: u64,
    start: u64,
    end: u64,
    blocks: Vec<Block>,
}

#[derive(Debug, Default)]
struct State {
    ranges: Vec<Range>,
    /// Blocks that were copied aside and not yet taken: region and number.
    order: VecDeque<(u64, usize)>,
    /// Where to look for the next block to be read.
    cursor: (usize, usize),
    held: u64,
    peak: u64,
    copied: u64,
    /// Why the snapshot in flight cannot be whole.
    broken: Option<Error>,
}

#[derive(Debug)]
pub(super) struct Guarded {
    uffd: Uffd,
    block: u64,
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
    stop: EventFd,
}

/// The guard over a session's regions. When it goes, all protection is lifted.
#[derive(Debug)]
pub(super) struct Guard {
    pub guarded: Arc<Guarded>,
    handler: Option<JoinHandle<()>>,
}

/// How much was copied aside for a snapshot so far, and the most that was held at a time, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copied {
    pub total: u64,
    pub peak: u64,
}

impl Guard {
    pub fn new(block: u64, limit: u64) -> Result<Guard> {
        let uffd = Uffd::for_all_faults().context("no userfaultfd for faults of the kernel (be root, set vm.unprivileged_userfaultfd, or use another method)")?;
        uffd.handshake(feature::WP | feature::WP_UNPOPULATED).context("this kernel cannot write-protect memory (needs Linux 6.4)")?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("cannot make an eventfd")?;
        let guarded = Arc::new(Guarded { uffd, block, limit: limit.max(block), state: Mutex::default(), changed: Condvar::new(), stop });
        let served = guarded.clone();
        let handler = silent_thread("stillframe-copy", move || served.serve())?;
        Ok(Guard { guarded, handler: Some(handler) })
    }

    /// Waits until the snapshot in flight needs the region no more, then ends the watch over it.
    pub fn let_go(&self, area: &Area) {
        let mut state = self.guarded.state();
        while state.ranges.iter().any(|range| range.area == area.id && range.blocks.iter().any(Block::in_flight)) {
            state = self.guarded.wait(state);
        }
        if let Some(range) = state.ranges.iter().find(|range| range.area == area.id) {
            // The mapping may be gone already, and the watch with it.
            let _ = self.guarded.uffd.unregister(range.start, range.end - range.start);
        }
        state.ranges.retain(|range| range.area != area.id);
        state.cursor = (0, 0);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.guarded.abandon();
        let _ = self.guarded.stop.write(1);
        if let Some(handler) = self.handler.take() {
            let _ = handler.join();
        }
    }
}

impl Block {
    fn in_flight(&self) -> bool {
        matches!(self, Block::Armed | Block::Reading | Block::Copied(_))
    }
}

impl Guarded {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a snapshot still needs blocks.
    pub fn is_busy(&self) -> bool {
        self.state().ranges.iter().any(|range| range.blocks.iter().any(Block::in_flight))
    }

    /// Protects what is to be in the next snapshot: all, or with `changed` only what was written since the last one. Returns,
    /// for each area, the addresses (start, end) that are in it.
    pub fn arm(&self, areas: &[&Area], changed: bool) -> Result<Vec<Vec<(u64, u64)>>> {
        let mut state = self.state();
        (state.cursor, state.peak, state.copied, state.broken) = ((0, 0), 0, 0, None);
        let armed: Result<Vec<_>> = areas.iter().map(|area| self.arm_area(&mut state, area, changed)).collect();
        drop(state);
        if armed.is_err() {
            self.abandon();
        }
        armed
    }

    fn arm_area(&self, state: &mut State, area: &Area, changed: bool) -> Result<Vec<(u64, u64)>> {
        let (start, end) = area.pages();
        if start >= end {
            return Ok(Vec::new());
        }
        let known = state.ranges.iter_mut().position(|range| range.area == area.id);
        let at = known.map_or_else(
            || {
                self.uffd.register(start, end - start, mode::WP).context(format!("cannot watch region '{}'", area.name))?;
                let blocks = (0..(end - start).div_ceil(self.block)).map(|_| Block::Open).collect();
                state.ranges.push(Range { area: area.id, start, end, blocks });
                Ok::<_, Error>(state.ranges.len() - 1)
            },
            Ok,
        )?;
        let range = &mut state.ranges[at];
        let mut armed: Vec<(u64, u64)> = Vec::new();
        for number in 0..range.blocks.len() {
            if changed && matches!(range.blocks[number], Block::Saved) {
                continue;
            }
            range.blocks[number] = Block::Armed;
            let (from, to) = range.addresses(number, self.block);
            match armed.last_mut() {
                Some(last) if last.1 == from => last.1 = to,
                _ => armed.push((from, to)),
            }
        }
        for &(from, to) in &armed {
            self.uffd.write_protect(from, to - from, true).context(format!("cannot write-protect region '{}'", area.name))?;
        }
        Ok(armed)
    }

    /// The next block of the snapshot, first those that take memory: its address and content as of the instant.
    pub fn next(&self) -> Result<Option<(u64, Box<[u8]>)>> {
        let mut state = self.state();
        if let Some(error) = &state.broken {
            return Err(error.clone());
        }
        if let Some((area, number)) = state.order.pop_front() {
            let found = state.ranges.iter_mut().find(|range| range.area == area).and_then(|range| {
                let address = range.addresses(number, self.block).0;
                match std::mem::replace(&mut range.blocks[number], Block::Open) {
                    Block::Copied(bytes) => Some((address, bytes)),
                    _ => None,
                }
            });
            let found = found.ok_or_else(|| Error::new(Kind::Io, "a block that was copied aside is lost; the snapshot is given up"))?;
            state.held -= found.1.len() as u64;
            self.changed.notify_all();
            return Ok(Some(found));
        }
        let Some((at, number)) = state.armed() else { return Ok(None) };
        let range = &mut state.ranges[at];
        range.blocks[number] = Block::Reading;
        let (area, (from, to)) = (range.area, range.addresses(number, self.block));
        drop(state);
        let mut bytes = vec![0; (to - from) as usize].into_boxed_slice();
        let read = own(from, &mut bytes);
        let mut state = self.state();
        // Meanwhile the snapshot may have been given up, and the block with it.
        if let Some(block @ Block::Reading) = state.ranges.iter_mut().find(|range| range.area == area).and_then(|range| range.blocks.get_mut(number)) {
            *block = Block::Saved;
        }
        self.changed.notify_all();
        read.map(|()| Some((from, bytes)))
    }

    pub fn copied(&self) -> Copied {
        let state = self.state();
        Copied { total: state.copied, peak: state.peak }
    }

    /// Gives the snapshot in flight up: all may be written again, without a copy.
    pub fn abandon(&self) {
        let mut state = self.state();
        for range in &mut state.ranges {
            range.blocks.iter_mut().for_each(|block| *block = Block::Open);
            // Where that fails, the mapping is gone.
            let _ = self.uffd.write_protect(range.start, range.end - range.start, false);
        }
        state.order.clear();
        state.held = 0;
        self.changed.notify_all();
    }

    /// Answers faults until told to stop.
    fn serve(&self) {
        loop {
            let mut watched = [PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN), PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
            let polled = poll(&mut watched, PollTimeout::NONE);
            if polled.is_ok() && watched[1].revents().is_some_and(|events| !events.is_empty()) {
                return;
            }
            for message in self.uffd.messages().unwrap_or_default() {
                if let Message::Fault { address, .. } = message {
                    self.admit(address);
                }
            }
        }
    }

    /// Lets a writer go, when what it overwrites is copied aside.
    fn admit(&self, address: u64) {
        let mut state = self.state();
        loop {
            let held = state.held;
            let Some(range) = state.ranges.iter_mut().find(|range| (range.start..range.end).contains(&address)) else {
                // Let go meanwhile, which has woken whoever waited.
                return;
            };
            let number = ((address - range.start) / self.block) as usize;
            let (area, (from, to)) = (range.area, range.addresses(number, self.block));
            match &range.blocks[number] {
                Block::Armed if held + (to - from) <= self.limit => {
                    let mut bytes = vec![0; (to - from) as usize].into_boxed_slice();
                    match own(from, &mut bytes) {
                        Ok(()) => {
                            range.blocks[number] = Block::Copied(bytes);
                            state.order.push_back((area, number));
                            state.held += to - from;
                            state.copied += to - from;
                            state.peak = state.peak.max(state.held);
                        }
                        Err(e) => (range.blocks[number], state.broken) = (Block::Open, Some(e)),
                    }
                }
                Block::Armed | Block::Reading => {
                    state = self.wait(state);
                    continue;
                }
                Block::Saved => range.blocks[number] = Block::Open,
                Block::Open | Block::Copied(_) => {}
            }
            let _ = self.uffd.write_protect(from, to - from, false);
            return;
        }
    }
}

impl Range {
    fn addresses(&self, number: usize, block: u64) -> (u64, u64) {
        let from = self.start + number as u64 * block;
        (from, (from + block).min(self.end))
    }
}

impl State {
    /// The next block to be read where it is.
    fn armed(&mut self) -> Option<(usize, usize)> {
        let (mut at, mut number) = self.cursor;
        while let Some(range) = self.ranges.get(at) {
            if let Some(step) = range.blocks.get(number..).and_then(|rest| rest.iter().position(|block| matches!(block, Block::Armed))) {
                self.cursor = (at, number + step + 1);
                return Some((at, number + step));
            }
            (at, number) = (at + 1, 0);
        }
        self.cursor = (at, number);
        None
    }
}
