//! The threads that bring pages in: one for those that are waited for, the others for all the rest.

use std::cmp::Reverse;
use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::space::Space;
use crate::error::Result;
use crate::image::{Block, BlockId, Chain, Piece, Source};

/// How long a thread without work sleeps at most.
const NAP: Duration = Duration::from_millis(20);

/// A page at which a thread of the instance waits.
struct Wanted {
    space: Arc<Space>,
    address: u64,
    run: Piece,
    block: BlockId,
}

/// All blocks in the order in which they are brought in: the newest frame first, and what was written last, which is what
/// changed last, first.
struct Plan {
    /// Runs of the chain, by their numbers, together by block.
    runs: Vec<u32>,
    blocks: Vec<(BlockId, Range<usize>)>,
}

fn order(block: BlockId) -> (u32, Reverse<u32>) {
    (block.frame, Reverse(block.block))
}

impl Plan {
    fn of(chain: &Chain) -> Plan {
        let held = |(number, piece): (u32, &Piece)| match piece.source {
            Source::Data { block, .. } => Some((order(block), number)),
            Source::Zero => None,
        };
        let mut runs: Vec<_> = (0..).zip(chain.pieces()).filter_map(held).collect();
        runs.sort_unstable();
        let mut blocks: Vec<(BlockId, Range<usize>)> = Vec::new();
        for (at, &((frame, Reverse(block)), _)) in runs.iter().enumerate() {
            match blocks.last_mut() {
                Some(last) if last.0 == (BlockId { frame, block }) => last.1.end = at + 1,
                _ => blocks.push((BlockId { frame, block }, at..at + 1)),
            }
        }
        Plan { runs: runs.into_iter().map(|(_, number)| number).collect(), blocks }
    }

    /// The runs of a block.
    fn runs_of(&self, block: BlockId) -> &[u32] {
        let number = self.blocks.binary_search_by_key(&order(block), |(block, _)| order(*block));
        number.map_or(&[], |number| &self.runs[self.blocks[number].1.clone()])
    }
}

/// What the threads share.
#[derive(Default)]
struct Board {
    spaces: Vec<Arc<Space>>,
    wanted: VecDeque<Wanted>,
    /// Blocks that a thread is working on.
    claimed: HashSet<BlockId>,
    /// Whether more is brought in than is waited for.
    draining: bool,
    /// How far the plan is carried out.
    next: usize,
}

/// The work, and who does it.
pub struct Crew {
    chain: Arc<Chain>,
    plan: OnceLock<Plan>,
    board: Mutex<Board>,
    news: Condvar,
    over: AtomicBool,
}

impl Crew {
    /// Work on `chain`, with no address space yet.
    pub fn new(chain: Arc<Chain>) -> Crew {
        Crew { chain, plan: OnceLock::new(), board: Mutex::default(), news: Condvar::new(), over: AtomicBool::new(false) }
    }

    /// Where the pages come from.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an address space.
    pub fn add(&self, space: Space) {
        self.board().spaces.push(Arc::new(space));
        self.news.notify_all();
    }

    /// The address spaces to which something is still to come.
    pub fn spaces(&self) -> Vec<Arc<Space>> {
        self.board().spaces.clone()
    }

    /// Begins to bring in what nobody waits for.
    pub fn drain(&self) {
        self.board().draining = true;
        self.news.notify_all();
    }

    /// Lets go of the address spaces that are complete; true if all are and draining has begun.
    pub fn complete(&self) -> bool {
        let mut board = self.board();
        if board.draining {
            board.spaces.retain(|space| !space.pending().is_empty());
        }
        board.draining && board.spaces.is_empty()
    }

    /// How many bytes are still to come.
    pub fn bytes_left(&self) -> u64 {
        self.spaces().iter().map(|space| space.pending().bytes()).sum()
    }

    /// Somebody waits for a page that is to come from `run`.
    pub fn want(&self, space: &Arc<Space>, address: u64, run: &Piece) {
        if let Source::Data { block, .. } = run.source {
            self.board().wanted.push_back(Wanted { space: Arc::clone(space), address, run: *run, block });
            self.news.notify_all();
        }
    }

    /// Ends the work of all threads.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.news.notify_all();
    }

    fn wait<'a>(&self, board: MutexGuard<'a, Board>) -> MutexGuard<'a, Board> {
        self.news.wait_timeout(board, NAP).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Serves those who wait, until the end.
    pub fn serve(&self) -> Result<()> {
        let mut buffer = Block::default();
        buffer.prepare()?;
        let mut board = self.board();
        while !self.over.load(Ordering::Relaxed) {
            let Some(wanted) = board.wanted.pop_front() else {
                board = self.wait(board);
                continue;
            };
            // Somebody else brings the rest of a claimed block, but the one page cannot wait for that.
            let claimed = board.claimed.insert(wanted.block);
            drop(board);
            if wanted.space.source(&self.chain, wanted.address) == Some(&wanted.run) {
                self.chain.read_block(wanted.block, &mut buffer)?;
                wanted.space.place_page(wanted.address, &wanted.run, buffer.raw())?;
                // The next one who waits does not wait for the plan.
                if let Some(plan) = self.plan.get().filter(|_| claimed) {
                    self.place(plan.runs_of(wanted.block), buffer.raw())?;
                }
            }
            board = self.board();
            if claimed {
                board.claimed.remove(&wanted.block);
            }
        }
        Ok(())
    }

    /// Brings in everything, the blocks that changed last first, until the end.
    pub fn work(&self) -> Result<()> {
        let mut board = self.board();
        while !board.draining && !self.over.load(Ordering::Relaxed) {
            board = self.wait(board);
        }
        drop(board);
        let plan = self.plan.get_or_init(|| Plan::of(&self.chain));
        let mut buffer = Block::default();
        board = self.board();
        while !self.over.load(Ordering::Relaxed) {
            let Some((block, runs)) = plan.blocks.get(board.next) else {
                // A child that was forked meanwhile may still miss what was brought in before.
                board.next = 0;
                board = self.wait(board);
                continue;
            };
            board.next += 1;
            if !board.claimed.insert(*block) {
                continue;
            }
            drop(board);
            if self.awaits(&plan.runs[runs.clone()]) {
                self.chain.read_block(*block, &mut buffer)?;
                self.place(&plan.runs[runs.clone()], buffer.raw())?;
            }
            board = self.board();
            board.claimed.remove(block);
        }
        Ok(())
    }

    fn run(&self, number: u32) -> &Piece {
        &self.chain.pieces()[number as usize]
    }

    fn awaits(&self, runs: &[u32]) -> bool {
        let spaces = self.spaces();
        runs.iter().any(|&number| spaces.iter().any(|space| space.awaits(self.run(number))))
    }

    /// One block may serve several address spaces: what parent and child had in common is stored once.
    fn place(&self, runs: &[u32], raw: &[u8]) -> Result<()> {
        let spaces = self.spaces();
        runs.iter().try_for_each(|&number| spaces.iter().try_for_each(|space| space.place(self.run(number), raw)))
    }
}
