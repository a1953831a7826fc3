//! Floor 2: the kinds of process state, one file a kind: its `State`, its capture and its restore side by side.

pub mod contents;
pub mod files;
pub mod memory;
pub mod tree;
