#![doc = include_str!("ARCHITECTURE.md")]
#![deny(unsafe_code)]

pub mod arch;
pub mod error;
pub mod host;
pub mod image;
pub mod proc;
pub mod resource;
pub mod store;
pub mod sys;
pub mod tracee;

pub use error::{Error, Kind, Result};
