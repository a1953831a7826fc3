//! Floor 2: the kinds of process state, one file a kind: its `State`, its capture and its restore side by side.

pub mod blob;
pub mod contents;
pub mod credentials;
pub mod fd;
pub mod files;
pub mod limits;
pub mod memory;
pub mod namespaces;
pub mod process;
pub mod signals;
pub mod threads;
pub mod timers;
pub mod tree;
