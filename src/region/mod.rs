//! Snapshots from inside a program: named regions of its memory, frozen in a moment and stored while it goes on.
//!
//! A program opens a [`Session`], allocates its arrays as [`Region`]s, and calls [`Session::snapshot`] where they are
//! consistent. The call returns when the memory is frozen; a thread of ours stores it. Started again, on this machine or on
//! another that shares the store, the program finds its regions as they were:
//!
//! ```
//! use stillframe::region::Session;
//!
//! # let dir = tempfile::tempdir()?; let store = dir.path();
//! let session = Session::builder("job").store(store).open()?;
//! let mut grid = session.alloc::<f64>("grid", 1 << 16)?; // as it was, or zeros
//! let mut step = session.state::<u64>()?.unwrap_or(0);
//! while step < 100 {
//!     grid.iter_mut().for_each(|cell| *cell += 1.0);
//!     step += 1;
//!     if session.due() {
//!         session.snapshot(&step)?;
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod builder;
mod deliver;
mod door;
mod freeze;
mod guard;
mod memory;
mod pages;
mod porter;
mod session;
mod snapshot;
mod ticket;
mod track;

pub use bytemuck;

pub use crate::image::Compression;
pub use crate::store::FrameRef;
pub use crate::sys::memory::Foreign;
pub(crate) use door::Aside;
pub use builder::{Builder, InFlight, Method, Quiesce, Resume};
pub use memory::Region;
pub use session::Session;
pub use snapshot::{RegionInfo, Snapshot, Version};
pub use ticket::{Info, Level, Ticket};
