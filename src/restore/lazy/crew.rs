//! The threads that bring pages in: one for those that are waited for, the others for all the rest.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::space::Space;
use crate::error::Result;
use crate::image::{Block, BlockId, Chain};

/// How long a thread without work sleeps at most.
const NAP: Duration = Duration::from_millis(20);

/// A page at which a thread of the instance waits.
struct Wanted {
    space: Arc<Space>,
    address: u64,
    block: BlockId,
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
}

/// The work, and who does it.
pub struct Crew {
    chain: Arc<Chain>,
    board: Mutex<Board>,
    news: Condvar,
    over: AtomicBool,
}

impl Crew {
    /// Work on `chain`, with no address space yet.
    pub fn new(chain: Arc<Chain>) -> Crew {
        Crew { chain, board: Mutex::default(), news: Condvar::new(), over: AtomicBool::new(false) }
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

    /// Somebody waits for a page that is to come from `block`.
    pub fn want(&self, space: &Arc<Space>, address: u64, block: BlockId) {
        self.board().wanted.push_back(Wanted { space: Arc::clone(space), address, block });
        self.news.notify_all();
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
        let mut board = self.board();
        while !self.over.load(Ordering::Relaxed) {
            let Some(wanted) = board.wanted.pop_front() else {
                board = self.wait(board);
                continue;
            };
            // Somebody else brings the rest of a claimed block, but the one page cannot wait for that.
            let claimed = board.claimed.insert(wanted.block);
            drop(board);
            if wanted.space.pending().at(wanted.address).is_some_and(|extent| extent.block == wanted.block) {
                self.chain.read_block(wanted.block, &mut buffer)?;
                wanted.space.place_page(wanted.address, wanted.block, buffer.raw())?;
                if claimed {
                    self.place(wanted.block, buffer.raw())?;
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
        let mut buffer = Block::default();
        let mut board = self.board();
        while !self.over.load(Ordering::Relaxed) {
            let next = board.spaces.iter().filter(|_| board.draining).find_map(|space| space.pending().next_block(|block| !board.claimed.contains(&block)));
            let Some(block) = next else {
                board = self.wait(board);
                continue;
            };
            board.claimed.insert(block);
            drop(board);
            self.chain.read_block(block, &mut buffer)?;
            self.place(block, buffer.raw())?;
            board = self.board();
            board.claimed.remove(&block);
        }
        Ok(())
    }

    /// One block may serve several address spaces: what parent and child had in common is stored once.
    fn place(&self, block: BlockId, raw: &[u8]) -> Result<()> {
        self.spaces().iter().try_for_each(|space| space.place(block, raw))
    }
}
