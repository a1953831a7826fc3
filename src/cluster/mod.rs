//! A service that outlives its process, its server and its standby: agents on a shared store of cluster state.

pub mod config;
pub mod decide;
pub mod state;
pub mod view;
