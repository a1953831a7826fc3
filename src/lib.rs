#![doc = include_str!("ARCHITECTURE.md")]
#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod arch;
pub mod catalog;
pub mod checkpoint;
pub mod cli;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod epochs;
pub mod error;
pub mod hooks;
pub mod host;
pub mod image;
pub mod inside;
pub mod isolate;
pub mod keep;
pub mod manifest;
pub mod metrics;
pub mod probe;
pub mod proc;
pub mod protect;
pub mod record;
pub mod region;
pub mod request;
pub mod resource;
pub mod restore;
pub mod signals;
pub mod store;
pub mod supervise;
pub mod sys;
pub mod tracee;
pub mod track;
pub mod transfer;

pub use error::{Error, Kind, Result};
