//! Write-protected blocks: the first write to one waits until it is copied aside, then goes on. Blocks that nobody writes are
//! read where they are.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::memory::Area;
use super::pages::own;
use super::session::silent_thread;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::uffd::{feature, mode, Message, Uffd};

/// Pieces of a region that are protected one by one.
const MANY: usize = 256;

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
    /// Where writers wait.
    faults: VecDeque<u64>,
    /// The handler is to end.
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Guarded {
    uffd: Uffd,
    block: u64,
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the handler.
    wake: EventFd,
}

/// The guard over a session's regions. When it goes, all protection is lifted.
#[derive(Debug)]
pub(super) struct Guard {
    pub guarded: Arc<Guarded>,
    handler: Option<JoinHandle<()>>,
    /// Whose memory it is; a forked child has these descriptors too.
    pid: u32,
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
        uffd.handshake(feature::WP | feature::WP_UNPOPULATED | feature::EVENT_REMOVE).context("this kernel cannot write-protect memory (needs Linux 6.4)")?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("cannot make an eventfd")?;
        let guarded = Arc::new(Guarded { uffd, block, limit: limit.max(block), state: Mutex::default(), changed: Condvar::new(), wake });
        let served = guarded.clone();
        let handler = silent_thread("stillframe-copy", move || served.serve())?;
        Ok(Guard { guarded, handler: Some(handler), pid: std::process::id() })
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
        if self.pid != std::process::id() {
            std::mem::forget(self.handler.take());
            return;
        }
        self.guarded.abandon();
        self.guarded.state().closed = true;
        let _ = self.guarded.wake.write(1);
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
        let mut all = Vec::new();
        for area in areas {
            let (back, armed) = self.arm_area(state, area, changed);
            state = back;
            match armed {
                Ok(armed) => all.push(armed),
                Err(e) => {
                    drop(state);
                    self.abandon();
                    return Err(e);
                }
            }
        }
        Ok(all)
    }

    fn arm_area<'a>(&'a self, mut state: MutexGuard<'a, State>, area: &Area, changed: bool) -> (MutexGuard<'a, State>, Result<Vec<(u64, u64)>>) {
        let (start, end) = area.pages();
        if start >= end {
            return (state, Ok(Vec::new()));
        }
        if !state.ranges.iter().any(|range| range.area == area.id) {
            if let Err(e) = self.uffd.register(start, end - start, mode::WP) {
                return (state, Err(Error::io(format!("cannot watch region '{}'", area.name), e)));
            }
            let blocks = (0..(end - start).div_ceil(self.block)).map(|_| Block::Open).collect();
            state.ranges.push(Range { area: area.id, start, end, blocks });
        }
        let mut armed: Vec<(u64, u64)> = Vec::new();
        for range in state.ranges.iter_mut().filter(|range| range.area == area.id) {
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
        }
        // What is protected already may be protected again, and a call for each of many pieces takes longer than one for all.
        let calls = if armed.len() > MANY { vec![(start, end)] } else { armed.clone() };
        for stretch in calls {
            let (back, done) = self.protect(state, stretch, true);
            state = back;
            if let Err(e) = done {
                return (state, Err(Error::io(format!("cannot write-protect region '{}'", area.name), e)));
            }
        }
        (state, Ok(armed))
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
        let (area, (from, to)) = (range.area, range.addresses(number, self.block));
        let mut bytes = room(to - from)?;
        range.blocks[number] = Block::Reading;
        drop(state);
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
        let mut all = Vec::new();
        for range in &mut state.ranges {
            range.blocks.iter_mut().for_each(|block| *block = Block::Open);
            all.push((range.start, range.end));
        }
        state.order.clear();
        state.held = 0;
        for range in all {
            // Where that fails, the mapping is gone.
            state = self.protect(state, range, false).0;
        }
        self.changed.notify_all();
    }

    /// Sets protection, or lifts it. While the program drops pages, the kernel refuses until we have read of it.
    fn protect<'a>(&'a self, mut state: MutexGuard<'a, State>, (from, to): (u64, u64), on: bool) -> (MutexGuard<'a, State>, std::io::Result<()>) {
        loop {
            match self.uffd.write_protect(from, to - from, on) {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    self.hear(&mut state);
                    // Whoever read of the faults, the handler answers them.
                    let _ = self.wake.write(1);
                    // Whoever was told drops its pages, and then we may.
                    std::thread::yield_now();
                }
                done => return (state, done),
            }
        }
    }

    /// Answers faults until told to stop.
    fn serve(&self) {
        loop {
            let mut watched = [PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN), PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut watched, PollTimeout::NONE);
            let _ = self.wake.read();
            let mut state = self.state();
            if state.closed {
                return;
            }
            self.hear(&mut state);
            while let Some(address) = state.faults.pop_front() {
                state = self.admit(state, address);
            }
        }
    }

    /// Reads what the kernel has to say. Pages are dropped as soon as the message of it is read, so nobody may change the state of
    /// a block meanwhile.
    fn hear(&self, state: &mut State) {
        for message in self.uffd.messages().unwrap_or_default() {
            match message {
                Message::Fault { address, .. } => state.faults.push_back(address),
                Message::Remove { start, end } => state.forget_dropped(self.block, start, end),
                _ => {}
            }
        }
        self.changed.notify_all();
    }

    /// Lets a writer go, when what it overwrites is copied aside.
    fn admit<'a>(&'a self, mut state: MutexGuard<'a, State>, address: u64) -> MutexGuard<'a, State> {
        loop {
            let held = state.held;
            let Some(range) = state.ranges.iter_mut().find(|range| (range.start..range.end).contains(&address)) else {
                // Let go meanwhile, which has woken whoever waited.
                return state;
            };
            let number = ((address - range.start) / self.block) as usize;
            let (area, (from, to)) = (range.area, range.addresses(number, self.block));
            match &range.blocks[number] {
                Block::Armed if held + (to - from) <= self.limit => {
                    match room(to - from).and_then(|mut bytes| own(from, &mut bytes).map(|()| bytes)) {
                        Ok(bytes) => {
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
            // Where that fails, the mapping is gone.
            return self.protect(state, (from, to), false).0;
        }
    }
}

/// Zeros to be filled. That there is no memory must not end the program.
fn room(len: u64) -> Result<Box<[u8]>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len as usize).map_err(|_| Error::new(Kind::Io, format!("no memory to copy {len} bytes aside; the snapshot is given up")))?;
    bytes.resize(len as usize, 0);
    Ok(bytes.into_boxed_slice())
}

impl Range {
    fn addresses(&self, number: usize, block: u64) -> (u64, u64) {
        let from = self.start + number as u64 * block;
        (from, (from + block).min(self.end))
    }
}

impl State {
    /// The program drops pages (MADV_DONTNEED), whose content nobody can copy any more. They count as written; the first write
    /// to what is left of their blocks lifts the protection.
    fn forget_dropped(&mut self, block: u64, start: u64, end: u64) {
        for range in &mut self.ranges {
            for number in 0..range.blocks.len() {
                let (from, to) = range.addresses(number, block);
                if from >= end || to <= start {
                    continue;
                }
                match range.blocks[number] {
                    Block::Armed | Block::Reading => {
                        let at = from.max(start);
                        let why = format!("the program dropped memory of a region (madvise, at {at:#x}) while its snapshot was in flight; wait until that is stored, or use another method");
                        self.broken.get_or_insert_with(|| Error::refused(why));
                    }
                    Block::Saved => {}
                    Block::Open | Block::Copied(_) => continue,
                }
                range.blocks[number] = Block::Open;
            }
        }
    }

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
